"""`bench engine`: whole searches, from token ids to SIDs, of one checkpoint by several engines.

Prompts of 64 tokens, three levels, 10⁵ SIDs; random weights (a small decoder and one of about 90
million parameters) or a trained pair. Ours is `Runner.search_batch`; figures are milliseconds per
batch of queries. Ours and the torch peers run with one thread and with all cores, and the better of
the two counts; both are in `by_threads`.

Answers are compared with those of our engine in float32: in bfloat16 beams may part at near ties,
so there our own agreement is told as well. `peak_share` is useful arithmetic (roofline.py) over the
measured peak of square products of the same type and threads.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.engine import Prompt
from decoding.native.runner import Runner
from decoding.weights import CONFIG_FILE, DecoderWeights
from index.trie import Trie
from loadtest.bench import hugging_face, prefix_mask, row_expanded, vllm_peer
from loadtest.bench.catalogues import random_keys
from loadtest.bench.hugging_face import HuggingFace
from loadtest.bench.machine import usable_cores
from loadtest.bench.random_checkpoint import LAYOUT, SIZES, Size, write_random_checkpoint
from loadtest.bench.report import EQUAL, OURS, Row, Samples, Timed, race, row, verdict
from loadtest.bench.roofline import gemm_peak, useful_flops
from loadtest.bench.row_expanded import RowExpanded
from loadtest.bench.vllm_peer import Vllm, VllmFailed

PROMPT_TOKENS = 64
REHEARSAL_WIDTH = 4
CATALOGUE_SIDS = 100_000
QUERIES = (1, 8)
WIDTHS = (32, 128)
OWN_WIDTHS = (512,)
DTYPES = ("float32", "bfloat16")
ROUNDS = 7
BUDGET_S = 2.0
QUICK_BUDGET_S = 1.0
SLOW_S = 3.0
"""A round that is expected to take longer is run once, without a warm-up, and a contender that
alone takes longer runs only with the better number of threads."""
SLICE_S = 0.1
"""Quick contenders run again and again for so long in each of their turns: one search after a peer
that took seconds would tell of its caches."""
TOO_SLOW_S = 10.0
"""One that is expected to take longer than this is left out, with the estimate as the reason."""

Codes = Sequence[NDArray[np.integer[Any]]]
"""Per query (n, L), best first."""


@dataclass(frozen=True, slots=True, eq=False)
class Bed:
    """What all engines of a table are given."""

    model: str
    checkpoint: Path
    trie: Trie
    prompts: NDArray[np.int64]
    exact: Runner


@dataclass(frozen=True, slots=True)
class Contestant:
    """An engine with a number of threads. `search(queries, width)` → codes or Timed codes."""

    name: str
    threads: int
    search: Callable[[int, int], Any]

    @property
    def key(self) -> str:
        return f"{self.name}, {self.threads} threads"


def rows(quick: bool, *, snapshot: Path | None = None, checkpoint: Path | None = None) -> list[Row]:
    """All tables, or those of a trained pair."""
    if snapshot is not None and checkpoint is not None:
        from index.snapshot import Snapshot

        trie = Snapshot.open(snapshot).trie
        model = f"checkpoint {checkpoint.name}"
        return [
            one
            for dtype in DTYPES
            for one in compare(make_bed(model, checkpoint, trie), dtype, quick)
        ]
    names = [name for name in TABLES if not quick or name.startswith("small")]
    return [one for name in names for one in TABLES[name](quick)]


def _table(model: str, dtype: str, queries: Sequence[int]) -> Callable[[bool], list[Row]]:
    def table(quick: bool) -> list[Row]:
        with random_bed(model, SIZES[model]) as bed:
            return compare(bed, dtype, quick, queries=queries)

    return table


_SMALL, _LARGE = SIZES
TABLES: dict[str, Callable[[bool], list[Row]]] = {
    f"small-{dtype}": _table(_SMALL, dtype, QUERIES) for dtype in DTYPES
} | {
    f"large-{dtype}-{count}": _table(_LARGE, dtype, (count,))
    for dtype in DTYPES
    for count in QUERIES
}


@contextmanager
def random_bed(model: str, size: Size, sids: int = CATALOGUE_SIDS) -> Generator[Bed]:
    """A checkpoint of random weights and a random catalogue, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_checkpoint(Path(folder), size)
        trie = Trie.build(LAYOUT, random_keys(LAYOUT, sids), assume_sorted=True)
        yield make_bed(model, Path(folder), trie)


def make_bed(model: str, checkpoint: Path, trie: Trie) -> Bed:
    """Prompts of random text tokens for a checkpoint."""
    weights = DecoderWeights.from_directory(checkpoint)
    words = min(weights.sid_offset)
    random = np.random.default_rng(7)
    prompts = random.integers(0, words, (max(QUERIES), PROMPT_TOKENS))
    return Bed(model, checkpoint, trie, prompts, Runner(weights, trie))


def compare(
    bed: Bed,
    dtype: str,
    quick: bool,
    *,
    queries: Sequence[int] = QUERIES,
    widths: Sequence[int] = WIDTHS,
    own_widths: Sequence[int] = OWN_WIDTHS,
) -> list[Row]:
    """One row per number of queries and width."""
    found: list[Row] = []
    peaks = {threads: gemm_peak(_type(dtype), threads) for threads in _thread_counts()}
    with ExitStack() as stack:
        contestants, missing = _contestants(bed, dtype, max(widths), stack)
        # Seconds per beam row when last timed, to foresee the next.
        pace = {one.key: _rehearse(one, min(widths)) for one in contestants}
        for width in widths:
            for count in queries:
                chosen, left_out = _affordable(contestants, pace, count * width)
                found.append(
                    _row(
                        bed,
                        dtype,
                        count,
                        width,
                        chosen,
                        {**missing, **left_out},
                        peaks,
                        pace,
                        quick,
                    )
                )
        ours = [one for one in contestants if one.name == OURS]
        for width in own_widths:
            for count in queries:
                found.append(_row(bed, dtype, count, width, ours, {}, peaks, pace, quick))
    return found


def _row(
    bed: Bed,
    dtype: str,
    count: int,
    width: int,
    contestants: Sequence[Contestant],
    missing: dict[str, str],
    peaks: dict[int, float],
    pace: dict[str, float],
    quick: bool,
) -> Row:
    expected = sum(pace[one.key] for one in contestants) * count * width
    times = race(
        {one.key: _with_threads(one, count, width) for one in contestants},
        rounds=ROUNDS,
        budget_s=QUICK_BUDGET_S if quick else BUDGET_S,
        slice_s=SLICE_S,
        warm_up=int(expected < SLOW_S),
        least_rounds=3 if expected < SLOW_S else 1,
    )
    best: dict[str, Contestant] = {}
    medians: dict[str, float] = {}
    by_threads: dict[str, dict[str, float]] = {}
    for one in contestants:
        medians[one.key] = float(np.median(times.seconds[one.key]))
        pace[one.key] = medians[one.key] / (count * width)
        by_threads.setdefault(one.name, {})[str(one.threads)] = float(
            f"{medians[one.key] * 1e3:.4g}"
        )
        if one.name not in best or medians[one.key] < medians[best[one.name].key]:
            best[one.name] = one
    wanted = _keys(bed, _own_search(bed.exact, bed.prompts, count, width))
    judge = verdict if dtype == "float32" else _agreement
    answers = {
        name: judge(wanted, _keys(bed, times.answers[one.key])) for name, one in best.items()
    }
    if answers[OURS] == EQUAL:
        answers.pop(OURS)
    work = _useful(bed, count, width)
    peers: dict[str, Samples | str] = {
        name: times.scaled(one.key, 1e3) for name, one in best.items() if name != OURS
    }
    return row(
        f"engine, {bed.model}, {dtype}",
        {"queries": count, "beam": width},
        times.scaled(best[OURS].key, 1e3),
        {**peers, **missing},
        "ms per batch",
        answers=answers,
        threads={name: one.threads for name, one in best.items()},
        by_threads=by_threads,
        useful_gflop=float(f"{work / 1e9:.4g}"),
        peak_gflops={str(threads): float(f"{peak / 1e9:.4g}") for threads, peak in peaks.items()},
        peak_share={
            name: float(f"{work / medians[one.key] / peaks[one.threads]:.3g}")
            for name, one in best.items()
        },
    )


def _contestants(
    bed: Bed, dtype: str, widest: int, stack: ExitStack
) -> tuple[list[Contestant], dict[str, str]]:
    """Engines that can run here, and why others cannot."""
    weights = bed.exact.weights
    own = bed.exact
    if dtype != "float32":
        own = Runner(DecoderWeights.from_directory(bed.checkpoint, dtype=_type(dtype)), bed.trie)
    searches: dict[str, Callable[[int, int], Any]] = {
        OURS: lambda count, width: _own_search(own, bed.prompts, count, width)
    }
    missing: dict[str, str] = {}
    arguments = (bed.checkpoint, _type(dtype), bed.trie, weights.sid_offset)
    prompts = torch.from_numpy(bed.prompts)
    if reason := prefix_mask.why_missing():
        missing[hugging_face.NAME] = reason
    else:
        generate = HuggingFace(*arguments).search
        searches[hugging_face.NAME] = lambda count, width: generate(prompts[:count], width)
    expanded = RowExpanded(*arguments).search
    searches[row_expanded.NAME] = lambda count, width: expanded(prompts[:count], width)
    found = [
        Contestant(name, threads, search)
        for name, search in searches.items()
        for threads in _thread_counts()
    ]
    if reason := vllm_peer.why_missing():
        missing[vllm_peer.NAME] = reason
    else:
        try:
            found += _vllm_contestants(bed, dtype, widest, stack)
        except VllmFailed as error:
            missing[vllm_peer.NAME] = str(error)
    return found, missing


def _vllm_contestants(bed: Bed, dtype: str, widest: int, stack: ExitStack) -> list[Contestant]:
    """One process for each number of threads."""
    running = [
        (threads, stack.enter_context(Vllm(bed.checkpoint, bed.trie, dtype, widest, threads)))
        for threads in _thread_counts()
    ]
    found: list[Contestant] = []
    for threads, vllm in running:
        vllm.wait()
        found.append(
            Contestant(
                vllm_peer.NAME,
                threads,
                lambda count, width, vllm=vllm: vllm.search(bed.prompts[:count], width),
            )
        )
    return found


def _rehearse(one: Contestant, width: int) -> float:
    """Seconds per beam row, measured once after a small search that loads what loads lazily."""
    _with_threads(one, 1, REHEARSAL_WIDTH)()
    return _with_threads(one, 1, width)().seconds / width


def _affordable(
    contestants: Sequence[Contestant], pace: dict[str, float], rows: int
) -> tuple[list[Contestant], dict[str, str]]:
    """Those to run, and why others are not: expected to take too long for what it would tell."""
    expected = {one.key: pace[one.key] * rows for one in contestants}
    chosen: list[Contestant] = []
    left_out: dict[str, str] = {}
    for one in contestants:
        others = [other for other in contestants if other.name == one.name]
        least = min(expected[other.key] for other in others)
        if expected[one.key] <= SLOW_S or (
            expected[one.key] == least and expected[one.key] <= TOO_SLOW_S
        ):
            chosen.append(one)
        elif least > TOO_SLOW_S:
            left_out[one.name] = f"not run: about {least:.0f} s by its pace before"
    return chosen, left_out


def _own_search(runner: Runner, prompts: NDArray[np.int64], count: int, width: int) -> Codes:
    asked = [Prompt(prompt.astype(np.int32)) for prompt in prompts[:count]]
    return [found.codes for found in runner.search_batch(asked, width)]


def _with_threads(one: Contestant, count: int, width: int) -> Callable[[], Timed]:
    def run() -> Timed:
        torch.set_num_threads(one.threads)
        begun = time.perf_counter()
        answer = one.search(count, width)
        took = time.perf_counter() - begun
        return answer if isinstance(answer, Timed) else Timed(answer, took)

    return run


def _agreement(wanted: Sequence[Any], given: Sequence[Any]) -> str:
    """How much a narrower type changes; near ties may fall either way."""
    shared = len(set(wanted) & set(given))
    return EQUAL if shared == len(wanted) else f"{shared} of {len(wanted)} as in float32"


def _keys(bed: Bed, codes: Codes) -> list[tuple[int, int]]:
    """(query, packed SID) of every legal or illegal SID found."""
    return [
        (query, int(key))
        for query, found in enumerate(codes)
        for key in bed.trie.layout.pack(np.asarray(found)).tolist()
    ]


def _useful(bed: Bed, count: int, width: int) -> float:
    shape = bed.exact.weights.shape
    config = json.loads((bed.checkpoint / CONFIG_FILE).read_bytes())
    beams = [1, *(min(width, nodes) for nodes in bed.trie.node_counts[:-1])]
    return useful_flops(
        shape,
        int(config["intermediate_size"]),
        bed.trie.layout,
        queries=count,
        prompt_tokens=PROMPT_TOKENS,
        rows=beams,
    )


def _thread_counts() -> tuple[int, ...]:
    return tuple(sorted({1, usable_cores()}))


def _type(name: str) -> torch.dtype:
    return torch.bfloat16 if name == "bfloat16" else torch.float32
