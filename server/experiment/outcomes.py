"""Exposures joined with events: arrays of units, pages and shown items.

A page is one answered search. Each item shown on it is clicked or not and ordered or not, however
often an event is repeated. Units that were seen in two arms are left out of the comparison, since
no arm can answer for them, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from index.errors import ConfigError
from server.experiment.records import CLICK, NO_EXPERIMENT, Exposure, ShownEvent

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
UNKNOWN = -1


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """U units, P pages, S shown items.

    `unit_arm` (U,): index into `arms`; `unit_history` (U,): items known of the unit before its
    first page, UNKNOWN where not recorded; `page_unit` (P,), `page_query` (P,): indices;
    `shown_page` (S,), `shown_item` (S,): indices; `clicked`, `ordered` (S,).
    """

    experiment: str
    arms: tuple[str, ...]
    unit_arm: Ints
    unit_history: Ints
    page_unit: Ints
    page_query: Ints
    queries: Sequence[str]
    shown_page: Ints
    shown_item: Ints
    items: Sequence[str]
    clicked: Bools
    ordered: Bools
    simulated: bool = False

    @property
    def n_units(self) -> int:
        return len(self.unit_arm)

    @property
    def n_pages(self) -> int:
        return len(self.page_unit)


@dataclass(frozen=True, slots=True)
class JoinNotes:
    """What was found on the way. `assigned`: units by the first arm they were seen in, crossed ones
    included; `crossed`: units in two arms; `shares`: share of each arm that the records name, None
    where they name none or several."""

    assigned: dict[str, int]
    crossed: int
    shares: dict[str, float | None]
    repeated_exposures: int
    unmatched_events: int
    repeated_events: int


def join(
    exposures: Iterable[Exposure], events: Iterable[ShownEvent], experiment: str | None = None
) -> tuple[Outcomes, JoinNotes]:
    """Outcomes of one experiment; which, must be said when there are several.

    Raises ConfigError when there is none, or several and none is named.
    """
    pages, repeated, elsewhere = _pages_of(exposures, experiment)
    first_arm: dict[str, str] = {}
    crossed: set[str] = set()
    for page in pages:
        if first_arm.setdefault(page.unit, page.arm) != page.arm:
            crossed.add(page.unit)
    assigned: dict[str, int] = {}
    for arm in first_arm.values():
        assigned[arm] = assigned.get(arm, 0) + 1
    kept = [page for page in pages if page.unit not in crossed]
    outcomes, found = _arrays(kept, tuple(sorted(assigned)), pages[0].experiment)
    left_out = elsewhere | {page.request_id for page in pages if page.unit in crossed}
    unmatched = again = 0
    simulated = outcomes.simulated
    for event in events:
        place = found.get((event.request_id, event.item_id))
        if place is None:
            unmatched += event.request_id not in left_out
            continue
        marks = outcomes.clicked if event.kind == CLICK else outcomes.ordered
        again += bool(marks[place])
        marks[place] = True
        simulated |= event.simulated
    shares = {arm: _share(page.share for page in pages if page.arm == arm) for arm in assigned}
    notes = JoinNotes(assigned, len(crossed), shares, repeated, unmatched, again)
    return replace(outcomes, simulated=simulated), notes


def _pages_of(
    exposures: Iterable[Exposure], experiment: str | None
) -> tuple[list[Exposure], int, set[str]]:
    """One exposure for each request, oldest first; how many were repeated; the requests of other
    experiments."""
    by_name: dict[str, dict[str, Exposure]] = {}
    repeated: Counter[str] = Counter()
    for one in exposures:
        by_request = by_name.setdefault(one.experiment, {})
        repeated[one.experiment] += one.request_id in by_request
        by_request.setdefault(one.request_id, one)
    names = sorted(by_name.keys() - {NO_EXPERIMENT})
    if experiment is None and len(names) > 1:
        raise ConfigError(f"there are several experiments, name one: {', '.join(names)}")
    if experiment is None:
        # Searches of no experiment are reported when there are no others.
        experiment = names[0] if names else NO_EXPERIMENT
    if experiment not in by_name:
        there = ", ".join(names) or "none"
        asked = f" of experiment {experiment!r}" if experiment else ""
        raise ConfigError(f"no exposures{asked}; there are: {there}")
    pages = by_name.pop(experiment)
    found = sorted(pages.values(), key=lambda one: (one.time, one.request_id))
    return found, repeated[experiment], {id for others in by_name.values() for id in others}


def _arrays(
    pages: Sequence[Exposure], arms: tuple[str, ...], experiment: str
) -> tuple[Outcomes, dict[tuple[str, str], int]]:
    """Arrays without events yet, and the place of each (request, item)."""
    units: dict[str, int] = {}
    queries: dict[str, int] = {}
    items: dict[str, int] = {}
    arm_of, history = list[int](), list[int]()
    page_unit, page_query, shown_page, shown_item = (list[int]() for _ in range(4))
    found: dict[tuple[str, str], int] = {}
    for number, page in enumerate(pages):
        if page.unit not in units:
            units[page.unit] = len(units)
            arm_of.append(arms.index(page.arm))
            known = page.history_items
            history.append(UNKNOWN if known is None else known)
        page_unit.append(units[page.unit])
        page_query.append(queries.setdefault(page.query, len(queries)))
        for item in page.items:
            if (page.request_id, item) not in found:
                found[page.request_id, item] = len(shown_page)
                shown_page.append(number)
                shown_item.append(items.setdefault(item, len(items)))
    outcomes = Outcomes(
        experiment,
        arms,
        _ints(arm_of),
        _ints(history),
        _ints(page_unit),
        _ints(page_query),
        list(queries),
        _ints(shown_page),
        _ints(shown_item),
        list(items),
        np.zeros(len(shown_page), np.bool_),
        np.zeros(len(shown_page), np.bool_),
        any(page.simulated for page in pages),
    )
    return outcomes, found


def _share(shares: Iterable[float | None]) -> float | None:
    named = set(shares)
    return named.pop() if len(named) == 1 else None


def _ints(values: Sequence[int]) -> Ints:
    return np.asarray(values, dtype=np.int64)
