"""`bench parity`: does vLLM find what the native engine finds, and how fast is its driver?

    answers   SIDs and scores of vLLM's engine and of ours, beside a beam search over exhaustive
              scores (exhaustive.py): beams × filters × queries
    speed     our beam driver beside vLLM's own beam search, on one and the same running vLLM

Where vLLM is not installed, this runs in its own environment (`make vllm-env`). On a trained pair
the queries are titles of its items, else prompts are drawn, with level priors. vLLM's own beam
search knows no legal SIDs: what it finds is told, not counted against its time. The prefix cache is
emptied before each timed search of either.
"""

# vLLM lives in another environment than the one that is checked.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Hypotheses, Prompt
from decoding.native.runner import Runner
from decoding.weights import DecoderWeights
from index import artifact
from index.errors import ConfigError
from index.sid import SidLayout
from index.trie import Trie, TrieFilter
from loadtest.bench.catalogues import random_keys
from loadtest.bench.exhaustive import Model, NodeScores, prefixes_of
from loadtest.bench.random_checkpoint import LAYOUT, SIZES, write_random_checkpoint
from loadtest.bench.report import EQUAL, OURS, Row, Timed, race, row, verdict
from loadtest.bench.vllm_peer import PYTHON, VllmFailed

BUILT_IN = "vLLM's own beam search"
NATIVE = "native engine"
SMALL_LAYOUT = SidLayout((64, 32, 16))
SMALL_SIDS = 2_000
LARGE_SIDS = 100_000
PROMPT_TOKENS = 64
PRIOR_DEVIATION = 2.0
QUERIES = (1, 8)
WIDTHS = (1, 8, 32, 128)
SPEED_WIDTHS = (8, 32, 128)
FILTERS = {"none": 1.0, "half of the SIDs": 0.5, "1 % of the SIDs": 0.01, "one SID": 0.0}
MOST_PREFIXES = 3_000
"""Of SIDs; with more of them exhaustive scores are left out."""
ROUNDS = 5
BUDGET_S = 3.0
QUICK_BUDGET_S = 1.5
QUICK_WIDTHS = (8, 32)
_LAST_WORDS = 600


@dataclass(frozen=True, slots=True, eq=False)
class Bed:
    """What both engines are given. `prompts`: as many as the largest number of queries."""

    model: str
    checkpoint: Path
    trie: Trie
    prompts: list[Prompt]


def rows(quick: bool, *, snapshot: Path | None = None, checkpoint: Path | None = None) -> list[Row]:
    """Both tables, of a made-up or of a trained pair."""
    if find_spec("vllm") is None:
        return _elsewhere(quick, None, snapshot, checkpoint)
    pair = None if snapshot is None or checkpoint is None else (snapshot, checkpoint)
    return [one for part in _PARTS.values() for one in part(quick, pair)]


def _elsewhere(
    quick: bool, table: str | None, snapshot: Path | None, checkpoint: Path | None
) -> list[Row]:
    """The same in vLLM's environment."""
    if not PYTHON.exists():
        raise ConfigError("bench parity needs vLLM in its own environment: make vllm-env")
    arguments = ["bench", "parity", "--json", *(["--quick"] if quick else [])]
    given = {"--table": table, "--snapshot": snapshot, "--checkpoint": checkpoint}
    for name, value in given.items():
        arguments += [name, str(value)] if value is not None else []
    program = "from server.cli.main import run; run()"
    done = subprocess.run([str(PYTHON), "-c", program, *arguments], capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        # Ours is the line that says error; vLLM goes on talking as it ends.
        told = [line for line in lines if line.startswith("error: ")] or lines
        raise VllmFailed(f"in vLLM's environment: …{' '.join(told)[-_LAST_WORDS:]}")
    # Whatever vLLM prints comes before.
    return json.loads(done.stdout.splitlines()[-1])["rows"]


def answers(quick: bool, pair: tuple[Path, Path] | None) -> list[Row]:
    """Two rows per setting: SIDs that are as they must be, and the largest difference of scores."""
    with _bed(pair, SMALL_LAYOUT, SMALL_SIDS) as bed, _vllm(bed, max(WIDTHS)) as engine:
        weights = DecoderWeights.from_directory(bed.checkpoint)
        native, model = Runner(weights, bed.trie), Model.open(bed.checkpoint)
        filters = _filters(bed.trie)
        exhaustive: list[NodeScores] = []
        found: list[Row] = []
        for name, allowed in filters.items():
            if not exhaustive and prefixes_of(bed.trie, allowed) <= MOST_PREFIXES:
                # Narrower filters follow, which keep less of the same.
                exhaustive = [
                    NodeScores.of(model, bed.trie, prompt, allowed) for prompt in bed.prompts
                ]
            for width in WIDTHS[:-1] if quick else WIDTHS:
                for count in QUERIES:
                    asked = bed.prompts[:count]
                    ours = engine.search(asked, width, allowed)
                    theirs = native.search_batch(asked, width, allowed)
                    setting = {"filter": name, "beam": width, "queries": count}
                    found += _compared(bed, setting, ours, theirs, exhaustive, allowed)
    # One table after the other.
    return found[::2] + found[1::2]


def speed(quick: bool, pair: tuple[Path, Path] | None) -> list[Row]:
    """Milliseconds per batch of queries."""
    with _bed(pair, LAYOUT, LARGE_SIDS) as bed, _vllm(bed, max(SPEED_WIDTHS)) as engine:
        native = Runner(DecoderWeights.from_directory(bed.checkpoint), bed.trie)
        found: list[Row] = []
        for width in QUICK_WIDTHS if quick else SPEED_WIDTHS:
            for count in QUERIES:
                asked = bed.prompts[:count]
                contenders: dict[str, Callable[[], Any]] = {
                    OURS: partial(engine.timed, asked, width),
                    BUILT_IN: partial(engine.timed_built_in, asked, width),
                }
                budget_s = QUICK_BUDGET_S if quick else BUDGET_S
                times = race(contenders, rounds=ROUNDS, budget_s=budget_s, least_rounds=3)
                wanted = _keys([one.leaves for one in native.search_batch(asked, width)])
                legal = _legal(bed, times.answers[BUILT_IN])
                mine = verdict(wanted, _keys([one.leaves for one in times.answers[OURS]]))
                told = {BUILT_IN: f"{legal} of {count * width} legal"}
                found.append(
                    row(
                        f"vLLM, beam search, {bed.model}",
                        {"queries": count, "beam": width},
                        times.scaled(OURS, 1e3),
                        times.peers(1e3),
                        "ms per batch",
                        answers=told if mine == EQUAL else {OURS: mine, **told},
                    )
                )
    return found


_PARTS: dict[str, Callable[[bool, tuple[Path, Path] | None], list[Row]]] = {
    "answers": answers,
    "speed": speed,
}


def _table(name: str) -> Callable[[bool], list[Row]]:
    def table(quick: bool) -> list[Row]:
        if find_spec("vllm") is None:
            return _elsewhere(quick, name, None, None)
        return _PARTS[name](quick, None)

    return table


TABLES: dict[str, Callable[[bool], list[Row]]] = {name: _table(name) for name in _PARTS}


class _Vllm:
    """A running engine, asked from outside of any event loop."""

    def __init__(self, bed: Bed, runner: asyncio.Runner, engine: Any) -> None:
        self._trie, self._runner, self._engine = bed.trie, runner, engine

    def search(
        self, prompts: Sequence[Prompt], width: int, allowed: TrieFilter | None
    ) -> list[Hypotheses]:
        return self._runner.run(self._engine.search(prompts, width, allowed, trie=self._trie))

    def timed(self, prompts: Sequence[Prompt], width: int) -> Timed:
        """Our driver, on an empty prefix cache."""
        return self._runner.run(
            self._timed(lambda: self._engine.search(prompts, width, trie=self._trie))
        )

    def timed_built_in(self, prompts: Sequence[Prompt], width: int) -> Timed:
        """vLLM's own; answers are lists of token ids."""
        levels = self._trie.layout.levels

        def search() -> Any:
            return self._engine.run(_built_in(self._engine.llm, prompts, width, levels))

        return self._runner.run(self._timed(search))

    async def _timed(self, search: Callable[[], Any]) -> Timed:
        await self._engine.run(self._engine.llm.reset_prefix_cache())
        begun = time.perf_counter()
        answer = await search()
        return Timed(answer, time.perf_counter() - begun)


@contextmanager
def _vllm(bed: Bed, widest: int) -> Generator[_Vllm]:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from decoding.vllm.engine import VllmEngine
    from decoding.vllm.settings import VllmSettings

    settings = VllmSettings(max_rows=max(QUERIES) * widest)
    with asyncio.Runner() as runner:
        engine = runner.run(VllmEngine.open(bed.checkpoint, bed.trie, settings))
        try:
            yield _Vllm(bed, runner, engine)
        finally:
            runner.run(engine.close())


async def _built_in(
    llm: Any, prompts: Sequence[Prompt], width: int, levels: int
) -> list[list[list[int]]]:
    """vLLM's beam search as its HTTP server does it, all prompts at the same time."""
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.sampling_params import BeamSearchParams

    class Search(BeamSearchOnlineMixin):
        """The server's method on our engine."""

        def __init__(self) -> None:
            self.engine_client, self.renderer = llm, _NoText()

    parameters = BeamSearchParams(beam_width=width, max_tokens=levels, ignore_eos=True)

    async def one(number: int, prompt: Prompt) -> list[list[int]]:
        asked: Any = {"type": "token", "prompt_token_ids": prompt.token_ids.tolist()}
        name = f"{time.perf_counter_ns()}-{number}"
        [found] = [answer async for answer in Search().beam_search(asked, name, parameters)]
        return [list(output.token_ids) for output in found.outputs]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(*numbered)) for numbered in enumerate(prompts)]
    return [task.result() for task in tasks]


class _NoText:
    """A renderer and tokenizer for who asks by token ids and wants no text."""

    eos_token_id = -1

    def get_tokenizer(self) -> _NoText:
        return self

    def decode(self, *_: Any, **__: Any) -> str:
        return ""


@contextmanager
def _bed(pair: tuple[Path, Path] | None, layout: SidLayout, sids: int) -> Generator[Bed]:
    if pair is not None:
        yield _trained(*pair)
        return
    model = next(iter(SIZES))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        with artifact.create(checkpoint, "checkpoint") as draft:
            write_random_checkpoint(draft.path, SIZES[model], layout)
        trie = Trie.build(layout, random_keys(layout, sids), assume_sorted=True)
        words = min(DecoderWeights.from_directory(checkpoint).sid_offset)
        random = np.random.default_rng(7)
        prompts = [
            Prompt(
                random.integers(0, words, PROMPT_TOKENS).astype(np.int32),
                tuple(
                    random.normal(0, PRIOR_DEVIATION, size).astype(np.float32)
                    for size in layout.level_sizes
                ),
            )
            for _ in range(max(QUERIES))
        ]
        yield Bed(f"{model}, {sids:,} SIDs", checkpoint, trie, prompts)


def _trained(snapshot_path: Path, checkpoint_path: Path) -> Bed:
    """Queries are titles of items, spread over the catalogue."""
    from index.snapshot import Snapshot
    from models.checkpoint import Checkpoint
    from models.query import QueryPrompts

    snapshot, checkpoint = Snapshot.open(snapshot_path), Checkpoint.open(checkpoint_path)
    titles = snapshot.items.table.column("title")
    chosen = np.linspace(0, len(titles) - 1, max(QUERIES)).astype(int).tolist()
    texts = [str(titles[row].as_py()) for row in chosen]
    made = QueryPrompts.of(snapshot.codec, checkpoint)
    prompts = made.prompts(texts, snapshot.embed_queries(texts), [()] * len(texts))
    name = f"checkpoint {checkpoint.version}"
    return Bed(name, checkpoint_path, snapshot.trie, prompts)


def _filters(trie: Trie) -> dict[str, TrieFilter | None]:
    """Each keeps a part of what the one before keeps."""
    order = np.random.default_rng(3).permutation(trie.n_leaves)
    found: dict[str, TrieFilter | None] = {}
    for name, share in FILTERS.items():
        kept = max(1, round(share * trie.n_leaves))
        found[name] = None if share == 1.0 else trie.filter(order < kept)
    return found


def _compared(
    bed: Bed,
    setting: dict[str, Any],
    ours: list[Hypotheses],
    native: list[Hypotheses],
    exhaustive: list[NodeScores],
    allowed: TrieFilter | None,
) -> list[Row]:
    width, count = setting["beam"], len(ours)
    leaves, of_native = [one.leaves for one in ours], [one.leaves for one in native]
    to_native = _distance(ours, native)
    missing = f"no exhaustive scores: more than {MOST_PREFIXES:,} prefixes"
    shares: dict[str, Any] = {NATIVE: missing}
    distances: dict[str, Any] = {NATIVE: missing}
    share, distance, details = _share(leaves, of_native), to_native, dict[str, Any]()
    if exhaustive:
        wanted = [scores.beam(width, allowed) for scores in exhaustive[:count]]
        best = [scores.best(width, allowed) for scores in exhaustive[:count]]
        share, shares[NATIVE] = _share(leaves, wanted), _share(of_native, wanted)
        distance = _distance_to(ours, exhaustive)
        distances[NATIVE] = _distance_to(native, exhaustive)
        details["of_the_best"] = _share(leaves, best)
    return [
        row(
            f"vLLM, SIDs of an exact beam search, {bed.model}",
            setting,
            share,
            shares,
            "share",
            higher_is_better=True,
            as_native=_share(leaves, of_native),
            **details,
        ),
        row(
            f"vLLM, largest difference to exhaustive scores, {bed.model}",
            setting,
            distance,
            distances,
            "difference of log-probabilities",
            to_native=to_native,
        ),
    ]


def _share(found: Sequence[NDArray[np.int64]], wanted: Sequence[NDArray[np.int64]]) -> float:
    """Of the wanted leaves; more than were wanted count against it."""
    right = sum(len(np.intersect1d(*both)) for both in zip(found, wanted, strict=True))
    most = sum(max(len(one), len(other)) for one, other in zip(found, wanted, strict=True))
    return right / most if most else 1.0


def _distance(found: Sequence[Hypotheses], other: Sequence[Hypotheses]) -> float:
    """Largest difference of two engines' scores of the same SID."""
    largest = 0.0
    for one, two in zip(found, other, strict=True):
        _, at, there = np.intersect1d(one.leaves, two.leaves, return_indices=True)
        difference = np.abs(one.scores[at] - two.scores[there])
        largest = max(largest, float(difference.max(initial=0.0)))
    return largest


def _distance_to(found: Sequence[Hypotheses], exhaustive: Sequence[NodeScores]) -> float:
    return max(
        float(np.abs(one.scores - scores.scores[-1][one.leaves]).max(initial=0.0))
        for one, scores in zip(found, exhaustive, strict=False)
    )


def _keys(leaves: Sequence[NDArray[np.int64]]) -> list[tuple[int, int]]:
    return [(query, leaf) for query, found in enumerate(leaves) for leaf in found.tolist()]


def _legal(bed: Bed, answers: Sequence[Sequence[Sequence[int]]]) -> int:
    """How many of the token sequences are SIDs of the trie."""
    offsets = np.array(DecoderWeights.from_directory(bed.checkpoint).sid_offset)
    sizes = np.array(bed.trie.layout.level_sizes)
    legal = set(bed.trie.keys.tolist())
    codes = np.array([found for answer in answers for found in answer]) - offsets
    inside = ((codes >= 0) & (codes < sizes)).all(axis=1)
    keys = bed.trie.layout.pack(codes[inside]) if inside.any() else []
    return sum(int(key) in legal for key in keys)
