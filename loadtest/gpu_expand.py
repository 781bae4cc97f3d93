"""The GPU expansion on a device: is it exact, and how long does it take.

`check()` compares every choice with `choose_reference` on hard tries; `measure()` times replays of
CUDA graphs against torch code of two published ideas, on the same inputs in the same run:

- padded CSR (STATIC, arXiv 2602.22647): as many children per beam as the level's busiest node has;
- top-2n of the codebook, then the illegal ones masked (FlashRec 0.1.2): inexact under filters.

Runs without a web stack. `check()` also runs on the CPU in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoding.cuda.expand import DeviceStep, DeviceTrie, Expander, LevelPlan, bitmap
from decoding.expand import choose_reference
from index.sid import SidLayout
from index.trie import Trie, TrieFilter

Bits = NDArray[np.bool_]
_REPLAYS_PER_SAMPLE = 20
_SAMPLES = 25
_NORMALISER_ERROR = 4e-6


class Case(NamedTuple):
    """`widths`: one per query. `kept`: per query the share of leaves its filter keeps, None for no
    filter. `grid`: logits are multiples of 1 / grid, so that ties are the rule; None for none."""

    trie: Trie
    widths: tuple[int, ...]
    kept: tuple[float | None, ...]
    grid: float | None = None
    prior: bool = False
    dtype: torch.dtype = torch.float32
    seed: int = 0


def build_trie(sizes: Sequence[int], codes: NDArray[np.integer[Any]]) -> Trie:
    """A trie of the given SIDs (n, L)."""
    layout = SidLayout(tuple(sizes))
    return Trie.build(layout, layout.pack(codes))


def random_trie(sizes: Sequence[int], sids: int, seed: int, skew: float = 1.0) -> Trie:
    """Random SIDs; `skew` > 1 makes low codes more frequent."""
    random = np.random.default_rng(seed)
    layout = SidLayout(tuple(sizes))
    keys = np.zeros(sids, dtype=np.uint64)
    for size, shift in zip(layout.level_sizes, layout.shifts, strict=True):
        codes = (random.random(sids) ** skew * size).astype(np.uint64)
        keys |= codes << np.uint64(shift)
    return Trie.build(layout, keys)


def hard_tries(scale: int) -> Iterator[tuple[str, Trie]]:
    """Tries that break kernels; `scale` is the size of the largest node."""
    numbers = np.arange(scale)
    yield (
        "one child everywhere",
        build_trie((scale, 8, 8), np.stack([numbers, numbers % 8, numbers % 5], 1)),
    )
    one_heavy = np.stack([np.zeros_like(numbers), numbers, numbers % 3], 1)
    light = np.stack([numbers[1:64], numbers[1:64] % 7, numbers[1:64] % 3], 1)
    yield (
        f"one node with {scale} children, 63 with one",
        build_trie((64, scale, 4), np.concatenate([one_heavy, light])),
    )
    yield (
        "all under one prefix",
        build_trie((4, 4, scale), np.stack([0 * numbers, 0 * numbers, numbers], 1)),
    )
    yield "a single item", build_trie((16, 16, 16), np.array([[3, 5, 7]]))
    yield "Zipf", random_trie((scale, 256, 64), 8 * scale, 1, skew=6.0)
    yield "random", random_trie((scale, 64, 16), 10 * scale, 2)


def disagreements(
    case: Case,
    device: torch.device | str,
    reshape: Callable[[LevelPlan], LevelPlan] = lambda plan: plan,
    passes: int = 2,
) -> list[str]:
    """Decodes all levels and compares each query's choice with the reference; [] when all agree.

    `reshape` changes the plans: shapes, not results. With two passes the second finds what the
    first has left behind.
    """
    sizes, queries, width = case.trie.layout.level_sizes, len(case.widths), max(case.widths)
    random = np.random.default_rng(case.seed)
    filters = [_filter(case.trie, share, random) for share in case.kept]
    device_trie = DeviceTrie.from_trie(case.trie, device)
    chosen = Expander(device_trie, queries, width, sizes, device).plans
    plans = [reshape(plan) for plan in chosen]
    expander = Expander(device_trie, queries, width, sizes, device, plans=plans)
    maps = [
        [bitmap(bits, device) for bits in filter.bits] if filter else None for filter in filters
    ]
    addresses = [[part.data_ptr() for part in one] if one else [0] * len(sizes) for one in maps]
    table = torch.tensor(addresses, dtype=torch.int64, device=device)
    widths = torch.tensor(case.widths, dtype=torch.int32, device=device)
    found: list[str] = []
    for number in range(passes):
        nodes = torch.zeros((queries, 1), dtype=torch.int32, device=device)
        scores = torch.zeros((queries, 1), dtype=torch.float32, device=device)
        for level, size in enumerate(sizes):
            logits = torch.from_numpy(random.normal(0, 2, (*nodes.shape, size))).float()
            if case.grid is not None:
                logits = (logits * case.grid).round() / case.grid
            logits = logits.to(device, case.dtype)
            prior = torch.from_numpy(random.normal(0, 1, (queries, size))).float().to(device)
            prior = prior if case.prior else None
            for part in expander.steps[level]:
                part.fill_(77)
            step = expander.expand(level, nodes, scores, logits, prior, table, widths)
            for query in range(queries):
                bits = None if (filter := filters[query]) is None else filter.bits[level]
                trouble = _compare(
                    case, level, query, nodes, scores, logits, prior, bits, expander, step
                )
                if trouble:
                    found.append(f"pass {number}, level {level}, query {query}: {trouble}")
            nodes, scores = step.nodes, step.scores
    return found


def _filter(trie: Trie, share: float | None, random: np.random.Generator) -> TrieFilter | None:
    return None if share is None else trie.filter(random.random(trie.n_leaves) < share)


def _compare(
    case: Case,
    level: int,
    query: int,
    nodes: Tensor,
    scores: Tensor,
    logits: Tensor,
    prior: Tensor | None,
    bits: Bits | None,
    expander: Expander,
    step: DeviceStep,
) -> str | None:
    """What differs from the reference, given the device's own log-probabilities."""
    row_scores = scores[query].cpu().numpy()
    live = row_scores > -np.inf
    exact = logits[query].float().cpu().numpy()
    if prior is not None:
        exact = exact + prior[query].cpu().numpy()
    exact = exact[live]
    normalisers = expander.normalisers[query, : len(live)].cpu().numpy()[live]
    wide = exact.astype(np.float64)
    truth = np.log(np.exp(wide - wide.max(1, keepdims=True, initial=-1e9)).sum(1))
    truth += wide.max(1, initial=-1e9)
    if np.abs(normalisers - truth).max(initial=0) > _NORMALISER_ERROR * np.abs(truth).max(
        initial=1
    ):
        return f"normalisers are off by {np.abs(normalisers - truth).max()}"
    expected = choose_reference(
        case.trie,
        level,
        nodes[query].cpu().numpy().astype(np.int64)[live],
        row_scores[live],
        exact - normalisers[:, None],
        bits,
        case.widths[query],
    )
    count = int(step.counts[query])
    if count != len(expected.nodes):
        return f"{count} rows instead of {len(expected.nodes)}"
    rows = np.flatnonzero(live)
    wanted = expected._replace(parents=rows[expected.parents])._asdict()
    dead = {"nodes": -1, "parents": -1, "codes": -1, "branching": 0}
    for name, values in wanted.items():
        actual = getattr(step, name)[query].cpu().numpy()
        if not np.array_equal(actual[:count], values):
            at = int(np.flatnonzero(actual[:count] != values)[0])
            return f"{name} differ first at {at} of {count}: {actual[at]} for {values[at]}"
        if not (actual[count:] == dead.get(name, -np.inf)).all():
            return f"{name} beyond row {count} are not dead"
    return None


def check(device: torch.device | str = "cuda", scale: int = 4096) -> list[dict[str, Any]]:
    """One row per case: `ours` is the number of disagreements with the reference."""
    shapes: list[tuple[str, Callable[[LevelPlan], LevelPlan]]] = [
        ("as planned", lambda plan: plan),
        ("through groups", _through_groups),
    ]
    demands: list[tuple[str, tuple[int, ...], tuple[float | None, ...]]] = [
        ("mixed widths", (512, 10, 50, 80), (None, None, 0.3, 0.02)),
        ("narrow", (1, 1), (None, 0.0)),
    ]
    rows: list[dict[str, Any]] = []
    for name, trie in hard_tries(scale):
        for demand, widths, kept in demands:
            for shape, reshape in shapes:
                for grid, dtype in ((None, torch.bfloat16), (1, torch.float32)):
                    case = Case(trie, widths, kept, grid, True, dtype)
                    setting = {"trie": name, "beams": demand, "plan": shape, "grid": grid}
                    rows.append(
                        _checked("choices equal to the reference", setting, case, device, reshape)
                    )
    ties = Case(random_trie((scale, 256), 64 * scale, 3), (512, 100), (None, 0.5), 1e-6)
    rows.append(_checked("all scores equal", {"trie": "random"}, ties, device, lambda plan: plan))
    return rows


def _through_groups(plan: LevelPlan) -> LevelPlan:
    """The plan of a level that is too large to be direct."""
    group = min(8, plan.tile)
    room = plan.candidates
    return replace(plan, direct=False, group=group, groups=room, collect_programs=3)


def _checked(
    what: str,
    setting: dict[str, Any],
    case: Case,
    device: torch.device | str,
    reshape: Callable[[LevelPlan], LevelPlan],
) -> dict[str, Any]:
    trouble = disagreements(case, device, reshape)
    return {
        "what": what,
        "setting": setting | ({"first": trouble[0]} if trouble else {}),
        "ours": len(trouble),
        "peers": {},
        "unit": "disagreements",
    }
