"""`bench filters`: from conditions on items to a filtered search.

A made-up shop (loadtest/bench/made_up_shop.py). Items are kept by their price, at random prices, so
the kept ones are scattered over all SIDs.

`first use`: milliseconds from conditions to everything that a search needs of a filter: which items
hold them, which SIDs have such an item, which nodes lead to such a SID.
`after a change`: the same when the filter was used before and 100 items changed since; beside it,
evaluating it anew.
`search`: a beam search (small random decoder) under a filter that was used before. Beside it the
same search without a filter. The answer is compared with a search of a trie that holds the kept
SIDs only, and counted are hypotheses that the filter does not allow.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decoding.engine import Hypotheses, Prompt
from decoding.native.runner import Runner, Search
from decoding.weights import DecoderWeights
from index.items import ItemFilter
from index.live.changes import Record, Update
from index.live.plan import plan
from index.live.view import CatalogueView
from index.trie import Trie
from loadtest.bench.made_up_shop import DIMENSION, write_shop
from loadtest.bench.random_checkpoint import LAYOUT, SIZES, write_random_checkpoint
from loadtest.bench.report import OURS, Row, race, row, verdict

ITEMS = 1_000_000
QUICK_ITEMS = 100_000
SHARES = (1.0, 0.05, 0.01, 0.002, 0.0001)
MODEL = "2 layers, d 256"
BEAM_WIDTH = 64
PROMPT_TOKENS = 24
CHANGED = 100


@dataclass(frozen=True, slots=True, eq=False)
class Bed:
    """A catalogue, a decoder for it, and the number of its items."""

    view: CatalogueView
    runner: Runner
    n_items: int

    def filter(self, share: float) -> ItemFilter:
        """Keeps about this share of the items."""
        highest = float(np.quantile(self.view.base.items.price, share))
        return ItemFilter(price_max=highest, price_min=0.0)

    def fresh(self) -> CatalogueView:
        """The catalogue, nothing of it used before."""
        return CatalogueView.of(self.view.base)

    def setting(self, share: float) -> dict[str, Any]:
        return {"items": self.n_items, "kept": f"{share:.2%}"}


def rows(quick: bool) -> list[Row]:
    """All tables, on one catalogue."""
    with _bed(quick) as bed:
        return [one for table in _TABLES.values() for one in table(bed)]


def first_rows(bed: Bed) -> list[Row]:
    """Milliseconds of a first use."""
    found: list[Row] = []
    for share in SHARES:
        filters = bed.filter(share)
        views = iter([bed.fresh() for _ in range(8)])
        times = race(
            {OURS: lambda filters=filters, views=views: next(views).filter(filters)},
            rounds=7,
            slice_s=0.0,
        )
        found.append(
            row("filters, first use", bed.setting(share), times.scaled(OURS, 1e3), {}, "ms")
        )
    return found


def changed_rows(bed: Bed) -> list[Row]:
    """Milliseconds of a filter after changes."""
    found: list[Row] = []
    random = np.random.default_rng(0)
    for share in SHARES:
        filters = bed.filter(share)
        view = bed.fresh()
        view.filter(filters)
        views: list[CatalogueView] = []
        for _ in range(8):
            view = _with_new_prices(view, random)
            views.append(view)
        ours, anew = iter(views), iter([bed.fresh() for _ in range(8)])
        times = race(
            {
                OURS: lambda filters=filters, ours=ours: next(ours).filter(filters),
                "evaluated anew": lambda filters=filters, anew=anew: next(anew).filter(filters),
            },
            rounds=7,
            slice_s=0.0,
        )
        setting = {**bed.setting(share), "changed": CHANGED}
        found.append(
            row(
                "filters, after a change",
                setting,
                times.scaled(OURS, 1e3),
                times.peers(1e3),
                "ms",
            )
        )
    return found


def search_rows(bed: Bed) -> list[Row]:
    """Milliseconds of a search under a filter used before."""
    found: list[Row] = []
    tokens = np.random.default_rng(1).integers(0, 8_000, PROMPT_TOKENS).astype(np.int32)
    trie = bed.view.base.trie
    for share in SHARES:
        filters = bed.filter(share)
        allowed = bed.view.filter(filters)
        assert allowed is not None
        kept = trie.keys[allowed.trie.bits[-1]]
        only_kept = Trie.build(LAYOUT, kept, assume_sorted=True)

        def filtered(filters: ItemFilter = filters) -> Hypotheses:
            own = bed.view.filter(filters)
            assert own is not None
            return _search(bed.runner, Search(Prompt(tokens), BEAM_WIDTH, own.trie))

        contenders: dict[str, Callable[[], Hypotheses]] = {
            OURS: filtered,
            "no filter": lambda: _search(bed.runner, Search(Prompt(tokens), BEAM_WIDTH)),
        }
        times = race(contenders, rounds=15)
        answer: Hypotheses = times.answers[OURS]
        alone = Runner(bed.runner.weights, only_kept)
        expected = _search(alone, Search(Prompt(tokens), BEAM_WIDTH))
        found.append(
            row(
                "filters, search",
                {**bed.setting(share), "beam": BEAM_WIDTH, "model": MODEL},
                times.scaled(OURS, 1e3),
                times.peers(1e3),
                "ms",
                answers={
                    "trie of the kept SIDs": verdict(
                        map(tuple, expected.codes.tolist()), map(tuple, answer.codes.tolist())
                    )
                },
                illegal=int((~allowed.trie.bits[-1][answer.leaves]).sum()),
            )
        )
    return found


_TABLES: dict[str, Callable[[Bed], list[Row]]] = {
    "first": first_rows,
    "changed": changed_rows,
    "search": search_rows,
}


def _alone(table: Callable[[Bed], list[Row]]) -> Callable[[bool], list[Row]]:
    def run(quick: bool) -> list[Row]:
        with _bed(quick) as bed:
            return table(bed)

    return run


TABLES: dict[str, Callable[[bool], list[Row]]] = {
    name: _alone(table) for name, table in _TABLES.items()
}


@contextmanager
def _bed(quick: bool) -> Generator[Bed]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    count = QUICK_ITEMS if quick else ITEMS
    try:
        with tempfile.TemporaryDirectory() as folder:
            snapshot = write_shop(Path(folder) / "shop", count, LAYOUT)
            write_random_checkpoint(Path(folder) / "checkpoint", SIZES[MODEL], LAYOUT)
            weights = DecoderWeights.from_directory(Path(folder) / "checkpoint")
            yield Bed(CatalogueView.of(snapshot), Runner(weights, snapshot.trie), count)
    finally:
        torch.set_num_threads(threads)


def _search(runner: Runner, search: Search) -> Hypotheses:
    [found] = runner.run([search])
    assert isinstance(found, Hypotheses)
    return found


def _with_new_prices(view: CatalogueView, random: np.random.Generator) -> CatalogueView:
    rows = random.integers(0, len(view.base.items), CHANGED).tolist()
    prices = random.permutation(view.base.items.price[:CHANGED]).tolist()
    changes = [
        Update(f"item{row}", {"price": price}) for row, price in zip(rows, prices, strict=True)
    ]
    nothing = np.empty((0, LAYOUT.levels), dtype=np.int32)
    record = Record(changes, nothing, np.empty((0, DIMENSION), dtype=np.float16))
    return view.after(plan(view.items, changes), record)
