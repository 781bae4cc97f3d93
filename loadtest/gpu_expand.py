"""The GPU expansion on a device: is it exact, and how long does it take.

`check()` compares every choice with `choose_reference` on hard tries; `measure()` times replays of
CUDA graphs against torch code of two published ideas, on the same inputs in the same run:

- padded CSR (STATIC, arXiv 2602.22647): as many children per beam as the level's busiest node has;
- top-2n of the codebook, then the illegal ones masked (FlashRec 0.1.2): inexact under filters.

Runs without a web stack. `check()` also runs on the CPU in Triton's interpreter.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
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
_INPUTS = 4
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
    """Tries that break kernels; `scale` is the size of the largest node. Levels are the same."""
    sizes = (64, scale, 16)
    numbers, zeros = np.arange(scale), np.zeros(scale, dtype=np.int64)
    few = numbers[:64]
    yield "one child everywhere", build_trie(sizes, np.stack([few, few * 7 % scale, few % 16], 1))
    heavy = np.stack([zeros, numbers, numbers % 3], 1)
    light = np.stack([few, few * 5 % scale, few % 3], 1)
    yield (
        f"one node with {scale} children, the others with one",
        build_trie(sizes, np.concatenate([heavy, light])),
    )
    deep = np.stack([zeros[:16], zeros[:16], numbers[:16]], 1)
    yield "all under one prefix", build_trie(sizes, deep)
    yield "a single item", build_trie(sizes, np.array([[3, 5, 7]]))
    yield "Zipf", random_trie(sizes, 20 * scale, 1, skew=6.0)
    yield "random", random_trie(sizes, 20 * scale, 2)


def disagreements(
    case: Case,
    device: torch.device | str,
    reshape: Callable[[LevelPlan], LevelPlan] | None = None,
    passes: int = 2,
    dependent_launch: bool = False,
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
    plans = [reshape(plan) for plan in chosen] if reshape else chosen
    expander = Expander(
        device_trie,
        queries,
        width,
        sizes,
        device,
        plans=plans,
        dependent_launch=dependent_launch,
    )
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
    widths, kept = (512, 10, 50, 1), (None, None, 0.3, 0.0)
    rows: list[dict[str, Any]] = []
    for name, trie in hard_tries(scale):
        case = Case(trie, widths, kept, None, True, torch.bfloat16)
        rows.append(_checked({"trie": name, "plan": "as chosen"}, case, device, _as_chosen))
        ties = Case(trie, widths, (0.02, None, 1.0, None), 1)
        rows.append(_checked({"trie": name, "plan": "groups, ties"}, ties, device, _through_groups))
    # Hundreds of children a row: groups of 32 at full scale.
    large = random_trie((scale // 8, scale // 4), 100 * scale, 3)
    ties = Case(large, (512, 100), (None, 0.5), 1e-6)
    rows.append(_checked({"trie": "large", "plan": "all equal"}, ties, device, _as_chosen))
    case = Case(large, (512, 100, 512), (None, 0.5, 0.01), None, False, torch.bfloat16)
    rows.append(_checked({"trie": "large", "plan": "as chosen"}, case, device, _as_chosen))
    if torch.device(device).type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9:
        setting = {"trie": "large", "plan": "dependent launches"}
        rows.append(_checked(setting, case, device, _as_chosen, True))
    return rows


def _as_chosen(plan: LevelPlan) -> LevelPlan:
    return plan


def _through_groups(plan: LevelPlan) -> LevelPlan:
    """The plan of a level that is too large to be direct."""
    splits = -(-plan.candidates // 512) if plan.rows == 1 else 1
    room = {"groups": plan.candidates, "collect_programs": 3}
    return replace(plan, direct=False, tile=512, group=8, splits=splits, **room)


def _checked(
    setting: dict[str, Any],
    case: Case,
    device: torch.device | str,
    reshape: Callable[[LevelPlan], LevelPlan],
    dependent_launch: bool = False,
) -> dict[str, Any]:
    trouble = disagreements(case, device, reshape, dependent_launch=dependent_launch)
    return {
        "what": "expansion against the reference",
        "setting": setting | ({"first": trouble[0]} if trouble else {}),
        "ours": len(trouble),
        "peers": {},
        "unit": "disagreements",
    }


class Setting(NamedTuple):
    """A catalogue and a wave: `queries` beams of `width`."""

    sizes: tuple[int, ...]
    sids: int
    queries: int
    width: int


_DEEP = (4096, 1024, 512, 256, 256)
_WIDE = (8192, 8192, 8192)
_SHORT = (2048, 16)
SETTINGS = (
    Setting(_DEEP, 10**5, 8, 512),
    Setting(_DEEP, 10**6, 8, 512),
    Setting(_DEEP, 10**7, 8, 512),
    Setting(_DEEP, 10**7, 16, 256),
    Setting(_DEEP, 10**7, 1, 512),
    Setting(_SHORT, 20_000, 8, 512),
    Setting(_WIDE, 10**7, 8, 512),
)


def measure(
    settings: Sequence[Setting] = SETTINGS, peers: bool = True, dependent_launch: bool = False
) -> list[dict[str, Any]]:
    """One row per setting and level: microseconds per step inside a CUDA graph, medians."""
    rows: list[dict[str, Any]] = []
    tries: dict[tuple[Any, ...], Trie] = {}
    for setting in settings:
        key = (setting.sizes, setting.sids)
        if key not in tries:
            tries = {key: random_trie(*key, seed=0)}
        rows += _measure_levels(setting, tries[key], peers, dependent_launch)
    return rows


def _measure_levels(
    setting: Setting, trie: Trie, peers: bool, dependent_launch: bool
) -> list[dict[str, Any]]:
    queries, width = setting.queries, setting.width
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    device_trie = DeviceTrie.from_trie(trie, device)
    expander = Expander(
        device_trie, queries, width, setting.sizes, device, dependent_launch=dependent_launch
    )
    table = torch.zeros((queries, len(setting.sizes)), dtype=torch.int64, device=device)
    widths = torch.full((queries,), width, dtype=torch.int32, device=device)
    nodes = torch.zeros((queries, 1), dtype=torch.int32, device=device)
    scores = torch.zeros((queries, 1), device=device)
    rows: list[dict[str, Any]] = []
    for level, size in enumerate(setting.sizes):
        # Several inputs in turn: a step must not find its own answer in the caches.
        shape = (_INPUTS, *nodes.shape, size)
        logits = 2 * torch.randn(shape, generator=generator, device=device)
        logits = logits.to(torch.bfloat16)

        ours = partial(_our_step, expander, level, nodes, scores, logits, table, widths)
        timed = {"ours": _time_graph(ours, 20, 25)}
        if peers:
            for name, peer in _PEERS.items():
                step = peer(device_trie, level, nodes, scores, width)
                timed[name] = _time_graph(partial(_peer_step, step, logits), _INPUTS, 11)
        ours(0)
        torch.cuda.synchronize()
        step = expander.steps[level]
        spread = {name: [round(part, 2) for part in parts] for name, parts in timed.items()}
        medians = {name: parts[1] for name, parts in spread.items()}
        children = _children(device_trie, level, nodes).sum().item() / queries
        rows.append(
            {
                "what": "expansion step in a CUDA graph",
                "setting": {
                    "levels": setting.sizes,
                    "sids": trie.n_leaves,
                    "queries": queries,
                    "width": width,
                    "level": level,
                    "children per query": round(children),
                    "quartiles": spread,
                },
                "ours": medians.pop("ours"),
                "peers": medians,
                "unit": "µs",
            }
        )
        nodes, scores = step.nodes.clone(), step.scores.clone()
    return rows


def _our_step(
    expander: Expander,
    level: int,
    nodes: Tensor,
    scores: Tensor,
    logits: Tensor,
    table: Tensor,
    widths: Tensor,
    number: int,
) -> None:
    expander.expand(level, nodes, scores, logits[number], None, table, widths)


def _peer_step(step: Callable[[Tensor], None], logits: Tensor, number: int) -> None:
    step(logits[number])


def _time_graph(step: Callable[[int], None], steps: int, replays: int) -> list[float]:
    """Microseconds per step, `steps` in one graph: lower quartile, median, upper quartile."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for number in range(_INPUTS):
            step(number)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(steps):
            step(number % _INPUTS)
    for _ in range(3):
        graph.replay()
    samples: list[float] = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(1000 * begin.elapsed_time(end) / steps)
    return statistics.quantiles(samples, n=4)


def _runs(trie: DeviceTrie, level: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """First child and end of children, int64 (Q, R); nothing for dead rows."""
    if not level:
        first = torch.zeros_like(nodes, dtype=torch.int64)
        return first, first + trie.node_counts[0]
    starts, live = trie.child_start[level - 1], nodes >= 0
    place = nodes.clamp_min(0)
    first, end = starts[place].long(), starts[place + 1].long()
    return first, torch.where(live, end, first)


def _children(trie: DeviceTrie, level: int, nodes: Tensor) -> Tensor:
    first, end = _runs(trie, level, nodes)
    return end - first


def _padded_step(
    trie: DeviceTrie, level: int, nodes: Tensor, scores: Tensor, width: int
) -> Callable[[Tensor], None]:
    """Own code of the padded CSR scheme: log softmax, a gather of as many (code, child) per row as
    the level's busiest node has, one top-k over all of them."""
    longest = len(trie.run_lengths[level]) - 1
    codes = trie.codes[level].to(torch.int32)
    offsets = torch.arange(longest, device=nodes.device)

    def step(logits: Tensor) -> None:
        table = torch.log_softmax(logits.float(), dim=-1)
        first, end = _runs(trie, level, nodes)
        child = first[..., None] + offsets
        code = codes[child.clamp_max(len(codes) - 1)].long()
        candidate = scores[..., None] + table.gather(2, code)
        candidate = candidate.masked_fill(child >= end[..., None], -torch.inf).flatten(1)
        _, chosen = torch.topk(candidate, min(width, candidate.shape[1]))
        child.flatten(1).gather(1, chosen)
        code.flatten(1).gather(1, chosen)

    return step


def _top_then_mask_step(
    trie: DeviceTrie, level: int, nodes: Tensor, scores: Tensor, width: int
) -> Callable[[Tensor], None]:
    """Own code of top-2n and mask: log softmax, the best 2n codes of each row, a binary search for
    each among the sorted edges (node · K + code), one top-k over the legal ones."""
    size = trie.level_sizes[level]
    parents = torch.zeros(1, dtype=torch.int64)
    if level:
        lengths = trie.child_start[level - 1].diff()
        parents = torch.arange(len(lengths), device=nodes.device).repeat_interleave(lengths)
    edges = parents.to(nodes.device) * size + trie.codes[level].to(torch.int64)

    def step(logits: Tensor) -> None:
        table = torch.log_softmax(logits.float(), dim=-1)
        best, code = torch.topk(table, min(2 * width, size), dim=-1, sorted=True)
        wanted = nodes.clamp_min(0).long()[..., None] * size + code
        place = torch.searchsorted(edges, wanted).clamp_max(len(edges) - 1)
        candidate = scores[..., None] + best
        candidate = candidate.masked_fill(edges[place] != wanted, -torch.inf).flatten(1)
        _, chosen = torch.topk(candidate, min(width, candidate.shape[1]))
        place.flatten(1).gather(1, chosen)
        code.flatten(1).gather(1, chosen)

    return step


_PEERS = {
    "padded CSR (STATIC)": _padded_step,
    "top-2n, then mask (FlashRec)": _top_then_mask_step,
}
