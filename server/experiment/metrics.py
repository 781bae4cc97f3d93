"""The published table's metrics, each a ratio of sums over units.

| metric | x of a unit | y of a unit |
|---|---|---|
| `item_ctr` | shown items that were clicked | shown items |
| `page_ctr` | pages with a click | pages |
| `page_cvr` | pages with an order | pages |
| `buyers` | 1 with an order, else 0 | 1 |
| `orders` | items ordered | 1 |

Buyers and orders are per unit, so arms of different shares compare.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from server.experiment.outcomes import Bools, Outcomes
from server.experiment.statistics import Floats

METRICS = ("item_ctr", "page_ctr", "page_cvr", "buyers", "orders")
ITEM_METRICS = ("item_ctr", "orders")
"""What can be said of some of the items of a page."""
LABELS = {
    "item_ctr": "item CTR",
    "page_ctr": "page CTR",
    "page_cvr": "page CVR",
    "buyers": "buyers per unit",
    "orders": "orders per unit",
}


class Sums(NamedTuple):
    """x and y of every unit, float64 (U,). Units with nothing to count have y = 0."""

    x: Floats
    y: Floats


def sums_of(
    outcomes: Outcomes, *, pages: Bools | None = None, shown: Bools | None = None
) -> dict[str, Sums]:
    """All metrics, over some `pages` (P,) or some `shown` items (S,) only, where given.

    A unit counts for `buyers` and `orders` when it has such a page, or was shown such an item.
    """
    n_units, n_pages = outcomes.n_units, outcomes.n_pages
    chosen = np.ones(len(outcomes.shown_page), np.bool_) if shown is None else shown
    in_pages = np.ones(n_pages, np.bool_) if pages is None else pages
    chosen = chosen & in_pages[outcomes.shown_page]
    if shown is not None:
        in_pages = np.bincount(outcomes.shown_page[chosen], minlength=n_pages) > 0
    page_of, unit_of = outcomes.shown_page[chosen], outcomes.page_unit

    def per_page(marks: Bools) -> Floats:
        found = np.bincount(page_of, weights=marks[chosen], minlength=n_pages)
        return found.astype(np.float64, copy=False)

    def per_unit(values: Floats | Bools) -> Floats:
        found = np.bincount(unit_of, weights=values, minlength=n_units)
        return found.astype(np.float64, copy=False)

    clicks, orders = per_page(outcomes.clicked), per_page(outcomes.ordered)
    n_shown = np.bincount(page_of, minlength=n_pages).astype(np.float64)
    page_count = per_unit(in_pages)
    present = (page_count > 0).astype(np.float64)
    ordered = per_unit(orders)
    return {
        "item_ctr": Sums(per_unit(clicks), per_unit(n_shown)),
        "page_ctr": Sums(per_unit(clicks > 0), page_count),
        "page_cvr": Sums(per_unit(orders > 0), page_count),
        "buyers": Sums((ordered > 0).astype(np.float64), present),
        "orders": Sums(ordered, present),
    }


def in_arm(sums: Sums, members: Bools) -> Sums:
    """The units of an arm that have something to count."""
    kept = members & (sums.y > 0)
    return Sums(sums.x[kept], sums.y[kept])
