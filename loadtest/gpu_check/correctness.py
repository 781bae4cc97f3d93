"""The engine on the card against the CPU's: the same searches, the same SIDs.

float32 must agree with the CPU's runner; bfloat16 must be legal, stable and close to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from decoding.cuda.bucket import Bucket
from decoding.cuda.runner import CudaRunner
from decoding.cuda.trace import Trace
from decoding.cuda.wave import Inputs, decode
from decoding.engine import Hypotheses, Prompt
from decoding.native.runner import Runner, Search
from index.live.trie import LiveTrie
from index.sid import SidLayout
from index.trie import Trie
from loadtest.bench.catalogues import random_keys
from loadtest.gpu_check.subjects import Subject, catalogue, small, subject
from models.transformer import Qwen3Config

LAYOUT = SidLayout((256, 256, 256))
WORDS = 200
TOLERANCE = 1e-3
LEAST_OVERLAP = 0.95


class Check(NamedTuple):
    name: str
    passed: bool
    detail: dict[str, Any]


class Bench(NamedTuple):
    """One decoder and catalogue on both devices."""

    subject: Subject
    trie: Trie
    cpu: Runner
    exact: CudaRunner
    narrow: CudaRunner


def checks() -> Iterator[Callable[[], Check]]:
    """In order; each may be run alone. Names are the functions' own."""
    found = subject(small(WORDS + sum(LAYOUT.level_sizes)), LAYOUT)
    trie = catalogue(LAYOUT, 200_000)
    bench = Bench(
        found,
        trie,
        Runner(found.weights(torch.float32, "cpu"), trie),
        CudaRunner(found.weights(torch.float32, "cuda"), trie),
        CudaRunner(found.weights(torch.bfloat16, "cuda"), trie),
    )
    for check in (
        single_searches,
        mixed_widths_and_filters,
        one_search_of_all_sids,
        added_sids,
        narrow_results,
        replay_after_other_captures,
        no_wait_inside,
        swapped_weights,
    ):
        yield _named(check, bench)
    yield ties
    yield odd_shapes


def _named(check: Callable[[Bench], Check], bench: Bench) -> Callable[[], Check]:
    def run() -> Check:
        return check(bench)

    run.__name__ = check.__name__
    return run


def single_searches(bench: Bench) -> Check:
    random = np.random.default_rng(1)
    searches = [
        Search(random_prompt(random, length, prior=row % 2 == 0), width)
        for row, (length, width) in enumerate(
            [(1, 1), (7, 8), (64, 50), (65, 32), (200, 128), (513, 512), (300, 1000)]
        )
    ]
    found = [one for search in searches for one in bench.exact.run([search])]
    return _compare("single_searches", bench.cpu.run(searches), found)


def mixed_widths_and_filters(bench: Bench) -> Check:
    random = np.random.default_rng(2)
    shares = (None, 0.05, 0.01, 0.002, 0.00005, 0.0)
    masks = {share: random.random(bench.trie.n_leaves) < share for share in shares if share}
    masks[0.0] = np.zeros(bench.trie.n_leaves, dtype=np.bool_)
    filters = {share: bench.trie.filter(mask) for share, mask in masks.items()}
    searches = [
        Search(
            random_prompt(random, int(random.integers(1, 150)), prior=row % 3 == 0),
            width,
            None if share is None else filters[share],
        )
        for row, (width, share) in enumerate(
            (width, share) for width in (10, 50, 80, 512) for share in shares
        )
    ]
    expected, found = bench.cpu.run(searches), bench.exact.run(searches)
    check = _compare("mixed_widths_and_filters", expected, found)
    allowed = [None if search.filter is None else search.filter.bits[-1] for search in searches]
    illegal = sum(
        int((~mask[one.leaves]).sum())
        for one, mask in zip(found, allowed, strict=True)
        if isinstance(one, Hypotheses) and mask is not None
    )
    short = sum(isinstance(one, Hypotheses) and not one.complete for one in found)
    detail = {**check.detail, "illegal": illegal, "short lists": short}
    return check._replace(passed=check.passed and not illegal and short > 0, detail=detail)


def one_search_of_all_sids(bench: Bench) -> Check:
    """A beam wider than the catalogue returns every SID."""
    trie = catalogue(LAYOUT, 700, seed=3)
    weights = bench.exact.weights
    random = np.random.default_rng(3)
    searches = [Search(random_prompt(random, 20), 1000)]
    expected = Runner(bench.cpu.weights, trie).run(searches)
    found = CudaRunner(weights, trie).run(searches)
    check = _compare("one_search_of_all_sids", expected, found)
    complete = isinstance(found[0], Hypotheses) and len(found[0]) == 700 and not found[0].complete
    return check._replace(passed=check.passed and complete)


def added_sids(bench: Bench) -> Check:
    """A trie with added SIDs is searched on the slower path, beside others in one wave."""
    random = np.random.default_rng(4)
    live = LiveTrie.of(bench.trie, random_keys(LAYOUT, 5000, "uniform", seed=4))
    searches = [
        Search(random_prompt(random, 40), width, trie=trie)
        for width in (20, 200)
        for trie in (None, live)
    ]
    return _compare("added_sids", bench.cpu.run(searches), bench.exact.run(searches))


def narrow_results(bench: Bench) -> Check:
    """bfloat16: every SID legal, lists much like float32's."""
    random = np.random.default_rng(5)
    searches = [Search(random_prompt(random, 100), 50) for _ in range(64)]
    exact, narrow = bench.exact.run(searches), bench.narrow.run(searches)
    overlaps, tops, gaps, illegal = [], [], [], 0
    for one, other in zip(exact, narrow, strict=True):
        assert isinstance(one, Hypotheses) and isinstance(other, Hypotheses)
        keys = bench.trie.layout.pack(other.codes)
        illegal += int((bench.trie.keys[other.leaves] != keys).sum())
        overlaps.append(len(np.intersect1d(one.leaves, other.leaves)) / len(one))
        tops.append(len(np.intersect1d(one.leaves[:10], other.leaves[:10])) / 10)
        gaps.append(abs(one.scores[0] - other.scores[0]))
    detail = {
        "illegal": illegal,
        "overlap at 50": float(np.mean(overlaps)),
        "overlap at 10": float(np.mean(tops)),
        "largest difference of best scores": float(np.max(gaps)),
    }
    passed = not illegal and min(np.mean(overlaps), np.mean(tops)) >= LEAST_OVERLAP
    return Check("narrow_results", bool(passed), detail)


def replay_after_other_captures(bench: Bench) -> Check:
    """Graphs share their memory, one after the other: none disturbs another."""
    random = np.random.default_rng(6)
    first = [Search(random_prompt(random, 90), 100) for _ in range(3)]
    before = bench.narrow.run(first)
    for length, width, count in ((30, 16, 1), (400, 320, 2), (120, 64, 8)):
        bench.narrow.run([Search(random_prompt(random, length), width) for _ in range(count)])
    worst = max(_distance(*pair) for pair in zip(before, bench.narrow.run(first), strict=True))
    return Check("replay_after_other_captures", worst == 0.0, {"difference": worst})


def no_wait_inside(bench: Bench) -> Check:
    """The whole decode is submitted without a wait for the device."""
    runner, bucket = bench.narrow, Bucket(2, 64, 128)
    decoder, layout, device = runner.decoder, LAYOUT, runner.weights.device
    inputs = Inputs(bucket, layout.level_sizes, device)
    inputs.write([random_prompt(np.random.default_rng(8), 100)] * 2, [64, 30], [])
    trace = Trace(bucket.queries, bucket.width, layout.levels, device)
    expander = runner.expander(bucket)
    with torch.inference_mode():
        decode(decoder, inputs, trace, expander)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            decode(decoder, inputs, trace, expander)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Check("no_wait_inside", True, {})


def swapped_weights(bench: Bench) -> Check:
    """A second runner with other weights answers as they do; the first is as before."""
    other = subject(small(WORDS + sum(LAYOUT.level_sizes)), LAYOUT, seed=9)
    cpu = Runner(other.weights(torch.float32, "cpu"), bench.trie)
    runner = CudaRunner(other.weights(torch.float32, "cuda"), bench.trie)
    random = np.random.default_rng(7)
    searches = [Search(random_prompt(random, 60), 50) for _ in range(2)]
    old = bench.exact.run(searches)
    check = _compare("swapped_weights", cpu.run(searches), runner.run(searches))
    again = bench.exact.run(searches)
    same = all(_distance(*pair) == 0.0 for pair in zip(old, again, strict=True))
    return check._replace(passed=check.passed and same)


def ties() -> Check:
    """Equal scores everywhere: SIDs come in their order."""
    found = subject(small(WORDS + sum(LAYOUT.level_sizes)), LAYOUT)
    for name, tensor in found.tensors.items():
        if name.startswith("lm_head"):
            tensor.zero_()
    trie = catalogue(LAYOUT, 50_000)
    wrong = 0
    for dtype in (torch.float32, torch.bfloat16):
        runner = CudaRunner(found.weights(dtype, "cuda"), trie)
        mask = np.arange(trie.n_leaves) % 7 == 3
        prompt = random_prompt(np.random.default_rng(8), 30)
        for width in (10, 300, 1000):
            for kept, filter in ((np.ones_like(mask), None), (mask, trie.filter(mask))):
                (result,) = runner.run([Search(prompt, width, filter)])
                assert isinstance(result, Hypotheses)
                wrong += not np.array_equal(result.leaves, np.flatnonzero(kept)[:width])
    return Check("ties", not wrong, {"wrong lists": wrong})


def odd_shapes() -> Check:
    """Sizes that are no powers of two, other groups of heads, one layer, one level."""
    worst, wrong = 0.0, 0
    for sizes, config in (
        ((40, 30, 20, 10), Qwen3Config(300, 96, 160, 3, 6, 2, 24)),
        ((500,), Qwen3Config(700, 64, 128, 1, 4, 4, 16)),
        ((64, 1000), Qwen3Config(1400, 320, 500, 2, 5, 1, 64)),
    ):
        layout = SidLayout(sizes)
        found = subject(config, layout, seed=len(sizes))
        trie = catalogue(layout, min(400, sizes[0] - 100 if len(sizes) == 1 else 400))
        random = np.random.default_rng(len(sizes))
        searches = [
            Search(random_prompt(random, length, words=100), width)
            for length, width in ((1, 3), (33, 40), (90, 7))
        ]
        expected = Runner(found.weights(torch.float32, "cpu"), trie).run(searches)
        check = _compare(
            "", expected, CudaRunner(found.weights(torch.float32, "cuda"), trie).run(searches)
        )
        worst = max(worst, check.detail["largest score difference"])
        wrong += not check.passed
    return Check("odd_shapes", not wrong, {"largest score difference": worst, "wrong": wrong})


def random_prompt(
    random: np.random.Generator, length: int, *, prior: bool = False, words: int = WORDS
) -> Prompt:
    table = tuple(random.normal(0, 1, size).astype(np.float32) for size in LAYOUT.level_sizes)
    token_ids = random.integers(0, words, length).astype(np.int32)
    return Prompt(token_ids, table if prior else None)


def _compare(name: str, expected: Sequence[Any], found: Sequence[Any]) -> Check:
    """Scores agree; SIDs agree wherever a neighbour's score is not nearer than the tolerance."""
    worst, differing, compared = 0.0, 0, 0
    for one, other in zip(expected, found, strict=True):
        assert isinstance(one, Hypotheses) and isinstance(other, Hypotheses)
        if len(one) != len(other) or one.complete != other.complete:
            return Check(name, False, {"lengths": (len(one), len(other))})
        if not len(one):
            continue
        worst = max(worst, float(np.abs(one.scores - other.scores).max()))
        gaps = np.abs(np.diff(one.scores, prepend=np.inf, append=-np.inf))
        clear = np.minimum(gaps[:-1], gaps[1:]) > 2 * TOLERANCE
        clear[-1] = False  # The last may have lost to one that is not shown.
        compared += int(clear.sum())
        differing += int((one.codes[clear] != other.codes[clear]).any(1).sum())
        same = (one.codes == other.codes).all(1)
        differing += int((one.branching[same] != other.branching[same]).any(1).sum())
        level_gap = np.abs(one.level_scores[same] - other.level_scores[same]).max(initial=0.0)
        worst = max(worst, float(level_gap))
    detail = {"largest score difference": worst, "differing SIDs": differing, "compared": compared}
    return Check(name, worst <= TOLERANCE and not differing, detail)


def _distance(one: Any, other: Any) -> float:
    """0.0 for results that are equal to the last bit."""
    assert isinstance(one, Hypotheses) and isinstance(other, Hypotheses)
    if len(one) != len(other) or not np.array_equal(one.leaves, other.leaves):
        return float("inf")
    return float(np.abs(one.scores - other.scores).max(initial=0.0))
