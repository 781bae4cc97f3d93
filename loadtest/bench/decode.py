"""`bench decode`: one level of constrained beam search without the model.

From logits to the kept prefixes: log softmax, legality, exact top-k, bookkeeping. Logits come from
one stand-in for a model, a function of level and last code, whose own time is not counted; answers
are SIDs. Figures are milliseconds per level, the mean over a search of five levels (4096, 1024,
512, 256, 256).

Filters: ours takes bits per node; peers without filters are given a trie built from the SIDs that
are kept, and the seconds of that build are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoding.beam import Beam, grow_all
from decoding.team import torch_team
from index.sid import SidLayout
from index.trie import Trie, TrieFilter
from loadtest.bench import flashrec_trie, padded, prefix_mask
from loadtest.bench.catalogues import PUBLISHED_LAYOUT, Law, random_keys
from loadtest.bench.flashrec_trie import FlashRecTrie
from loadtest.bench.padded import PaddedScheme
from loadtest.bench.prefix_mask import PrefixMask
from loadtest.bench.report import OURS, Row, Timed, race, row, verdict

WIDTHS = (8, 32, 128, 512)
SIZES = (10_000, 100_000, 1_000_000, 5_000_000, 10_000_000)
QUICK_SIZES = (10_000, 1_000_000)
MAIN_SIZE = 5_000_000
QUICK_MAIN_SIZE = 1_000_000
MAIN_WIDTH = 512
KEPT_SHARES = (1.0, 0.01)
LOGIT_DEVIATION = 2.0
POOL_ROWS = 64
WORST_SCORE = -1e3
ROUNDS = 9
BUDGET_S = 3.0
QUICK_BUDGET_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """Random SIDs and their trie."""

    law: Law
    keys: NDArray[np.uint64]
    trie: Trie

    @classmethod
    def make(cls, size: int, law: Law, layout: SidLayout = PUBLISHED_LAYOUT) -> Catalogue:
        keys = random_keys(layout, size, law)
        return cls(law, keys, Trie.build(layout, keys, assume_sorted=True))


def rows(quick: bool) -> list[Row]:
    """All tables."""
    return [one for part in TABLES.values() for one in part(quick)]


def width_rows(quick: bool) -> list[Row]:
    """Beam widths, at one size of catalogue."""
    catalogue = Catalogue.make(QUICK_MAIN_SIZE if quick else MAIN_SIZE, "uniform")
    return compare(catalogue, WIDTHS, quick=quick, what="expand + select, by beam width")


def uniform_rows(quick: bool) -> list[Row]:
    """Sizes of catalogue, codes drawn alike."""
    return _size_rows(quick, "uniform")


def zipf_rows(quick: bool) -> list[Row]:
    """Sizes of catalogue, few prefixes with most SIDs."""
    return _size_rows(quick, "zipf")


def filter_rows(quick: bool) -> list[Row]:
    """Everything and 1 % of the SIDs allowed."""
    catalogue = Catalogue.make(QUICK_MAIN_SIZE if quick else MAIN_SIZE, "uniform")
    return [
        one
        for share in KEPT_SHARES
        for one in compare(
            catalogue, (128, 512), share=share, quick=quick, what="expand + select, by filter"
        )
    ]


TABLES: dict[str, Callable[[bool], list[Row]]] = {
    "widths": width_rows,
    "uniform": uniform_rows,
    "zipf": zipf_rows,
    "filters": filter_rows,
}


def compare(
    catalogue: Catalogue,
    widths: Sequence[int],
    *,
    what: str,
    share: float = 1.0,
    quick: bool = False,
    seed: int = 7,
) -> list[Row]:
    """One row per width. `share`: what a random filter keeps of the SIDs."""
    trie, layout = catalogue.trie, catalogue.trie.layout
    mask = np.random.default_rng(seed).random(trie.n_leaves) < share
    filter = None if share == 1.0 else trie.filter(mask)
    kept = catalogue.keys if filter is None else catalogue.keys[mask]
    narrow = trie if filter is None else Trie.build(layout, kept, assume_sorted=True)
    model = StandIn(random_pools(layout, seed))
    laps: list[list[float]] = []
    codes = layout.unpack(kept)
    published = PaddedScheme.build(padded.one_space(layout), codes)
    searches: dict[str, tuple[Callable[[StandIn, int], Any], StandIn]] = {
        OURS: (lambda model, width: search(trie, filter, model, width, laps), model),
        padded.PUBLISHED_NAME: (
            published.search,
            StandIn([published.spread(pool) for pool in model.pools]),
        ),
        padded.NAME: (PaddedScheme.build(layout, codes).search, model),
    }
    missing: dict[str, str] = {}
    if reason := flashrec_trie.why_missing():
        missing[flashrec_trie.NAME] = reason
    else:
        searches[flashrec_trie.NAME] = (FlashRecTrie(narrow).search, model)
    if reason := prefix_mask.why_missing():
        missing[prefix_mask.NAME] = reason
    else:
        masked = PrefixMask(narrow)
        spread = [masked.spread(pool, level) for level, pool in enumerate(model.pools)]
        searches[prefix_mask.NAME] = (masked.search, StandIn(spread))
    found: list[Row] = []
    for width in widths:
        laps.clear()
        contenders = {name: _timed(run, by, width) for name, (run, by) in searches.items()}
        times = race(contenders, rounds=ROUNDS, budget_s=QUICK_BUDGET_S if quick else BUDGET_S)
        per_level = 1e3 / layout.levels
        wanted = times.answers.pop(OURS).tolist()
        setting = {
            "beam": width,
            "sids": trie.n_leaves,
            "codes": catalogue.law,
            "kept": f"{share:.0%}",
            "threads": torch.get_num_threads(),
        }
        found.append(
            row(
                what,
                setting,
                times.scaled(OURS, per_level),
                {**times.peers(per_level), **missing},
                "ms per level",
                answers={
                    name: verdict(wanted, found_keys(layout, *answer))
                    for name, answer in times.answers.items()
                },
                ours_by_level=[float(f"{ms:.3g}") for ms in np.median(laps, axis=0) * 1e3],
            )
        )
    return found


class StandIn:
    """In a model's place: the logits of a level as a function of the last code.

    `pools[l]`: float32 (P, K); code c reads row c mod P. `seconds`: spent here since it was zeroed.
    """

    def __init__(self, pools: Sequence[Tensor]) -> None:
        self.pools = list(pools)
        self.seconds = 0.0

    def __call__(self, level: int, codes: Tensor | None) -> Tensor:
        """Logits (rows, K) of the rows' last codes, (1, K) for none."""
        begun = time.perf_counter()
        pool = self.pools[level]
        rows = pool[:1] if codes is None else pool[codes % len(pool)]
        self.seconds += time.perf_counter() - begun
        return rows


def random_pools(layout: SidLayout, seed: int) -> list[Tensor]:
    """Normal logits of LOGIT_DEVIATION for every level, float32 (POOL_ROWS, K)."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn((POOL_ROWS, size), generator=generator) * LOGIT_DEVIATION
        for size in layout.level_sizes
    ]


def search(
    trie: Trie,
    filter: TrieFilter | None,
    model: Callable[[int, Tensor | None], Tensor],
    width: int,
    laps: list[list[float]] | None = None,
) -> NDArray[np.uint64]:
    """Ours: packed SIDs, best first; appends the seconds of each level to `laps`."""
    beam = Beam(trie, width, filter)
    times: list[float] = []
    codes: Tensor | None = None
    for level in range(trie.layout.levels):
        logits = model(level, codes).numpy()
        begun = time.perf_counter()
        grow_all([beam], logits, None, torch_team())
        codes = torch.from_numpy(beam.steps[-1].codes)
        times.append(time.perf_counter() - begun)
    if laps is not None:
        laps.append(times)
    return trie.layout.pack(beam.hypotheses().codes)


def found_keys(layout: SidLayout, codes: Tensor, scores: Tensor) -> list[int]:
    """Packed SIDs of a peer's rows with a possible score; illegal ones stay in, to be counted."""
    alive = (scores > WORST_SCORE) & (codes >= 0).all(1)
    return layout.pack(codes[alive].numpy()).tolist()


def _timed(run: Callable[[StandIn, int], Any], model: StandIn, width: int) -> Callable[[], Timed]:
    def once() -> Timed:
        model.seconds = 0.0
        begun = time.perf_counter()
        answer = run(model, width)
        return Timed(answer, time.perf_counter() - begun - model.seconds)

    return once


def _size_rows(quick: bool, law: Law) -> list[Row]:
    found: list[Row] = []
    for size in QUICK_SIZES if quick else SIZES:
        what = f"expand + select, by catalogue size ({law})"
        catalogue = Catalogue.make(size, law)
        found += compare(catalogue, (MAIN_WIDTH,), quick=quick, what=what)
    return found
