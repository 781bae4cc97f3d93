"""Simulated users, to test the statistics and to show what a report looks like. Nobody is real.

Each simulated user has a propensity to click (Beta) and a number of searches (1 + Poisson of a
Gamma), so pages of one user are alike. An item at position i is clicked with probability
propensity · lift · 1/(1 + 0.15·i), a clicked item is ordered with `order_rate`. A planted lift
multiplies the click probability of every arm but the first, so that item CTR has exactly that
relative lift, and pages and orders about that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from server.experiment.assignment import Experiment
from server.experiment.outcomes import Ints, Outcomes
from server.experiment.records import CLICK, ORDER, Exposure, ShownEvent

ITEMS_PER_PAGE = 10
CATEGORIES = ("desks", "lamps", "shelves", "chairs")
_POSITION_SLOPE = 0.15
_CLICK_CONCENTRATION = 12.0
_SEARCH_SHAPE = 1.0
_SECONDS_PER_PAGE = 30.0


@dataclass(frozen=True, slots=True)
class SimulatedShop:
    """`click_lift`: relative, of all arms but the first. `searches`: mean per user, at least 1."""

    users: int = 2_000
    searches: float = 3.0
    click_rate: float = 0.12
    order_rate: float = 0.15
    click_lift: float = 0.0
    items: int = 500
    queries: int = 300


def simulate(shop: SimulatedShop, experiment: Experiment, random: np.random.Generator) -> Outcomes:
    """Outcomes of simulated users, assigned as the gateway assigns real ones."""
    arms = tuple(arm.name for arm in experiment.arms)
    places = [experiment.arm_of(name) for name in simulated_units(shop.users)]
    unit_arm = np.asarray([-1 if arm is None else arms.index(arm.name) for arm in places])
    return simulate_arms(shop, experiment.name, arms, unit_arm[unit_arm >= 0], random)


def simulated_units(n: int) -> list[str]:
    """Names of simulated units."""
    return [f"user:simulated-{number}" for number in range(n)]


def simulate_arms(
    shop: SimulatedShop,
    name: str,
    arms: tuple[str, ...],
    unit_arm: Ints,
    random: np.random.Generator,
) -> Outcomes:
    """Outcomes of simulated users in given arms (U,)."""
    n_units = len(unit_arm)
    mean = shop.click_rate
    propensity = random.beta(
        _CLICK_CONCENTRATION * mean, _CLICK_CONCENTRATION * (1 - mean), n_units
    )
    rate = random.gamma(_SEARCH_SHAPE, (shop.searches - 1) / _SEARCH_SHAPE, n_units)
    page_unit = np.repeat(np.arange(n_units), 1 + random.poisson(rate))
    n_pages = len(page_unit)
    page_query = _popular(shop.queries, n_pages, random)
    shown_page = np.repeat(np.arange(n_pages), ITEMS_PER_PAGE)
    position = np.tile(np.arange(ITEMS_PER_PAGE), n_pages)
    # Ten in a row of a circle from a popular start: distinct items on each page.
    start = _popular(shop.items, n_pages, random)
    shown_item = (start[shown_page] + position) % shop.items
    lifted = 1 + shop.click_lift * (unit_arm > 0)
    of_page = (propensity * lifted)[page_unit]
    chance = of_page[shown_page] / (1 + _POSITION_SLOPE * position)
    clicked = random.random(len(shown_page)) < chance
    ordered = clicked & (random.random(len(shown_page)) < shop.order_rate)
    return Outcomes(
        name,
        arms,
        np.asarray(unit_arm, np.int64),
        random.poisson(2 * rate).astype(np.int64),
        page_unit.astype(np.int64),
        page_query,
        [f"simulated query {number}" for number in range(shop.queries)],
        shown_page.astype(np.int64),
        shown_item.astype(np.int64),
        [f"simulated-{number}" for number in range(shop.items)],
        clicked,
        ordered,
        simulated=True,
    )


def exposures_of(outcomes: Outcomes, experiment: Experiment) -> Iterator[Exposure]:
    """The exposures that a gateway would have written, marked as simulated."""
    shares = {arm.name: float(arm.share) for arm in experiment.arms}
    starts = np.searchsorted(outcomes.shown_page, np.arange(outcomes.n_pages + 1))
    items = [outcomes.items[int(place)] for place in outcomes.shown_item]
    for page, unit in enumerate(outcomes.page_unit.tolist()):
        arm = outcomes.arms[int(outcomes.unit_arm[unit])]
        yield Exposure(
            outcomes.experiment,
            arm,
            f"user:simulated-{unit}",
            f"simulated-{page}",
            page * _SECONDS_PER_PAGE,
            tuple(items[starts[page] : starts[page + 1]]),
            outcomes.queries[int(outcomes.page_query[page])],
            shares.get(arm),
            int(outcomes.unit_history[unit]),
            simulated=True,
        )


def events_of(outcomes: Outcomes) -> Iterator[ShownEvent]:
    """Clicks and orders of the outcomes, marked as simulated."""
    for kind, marks in ((CLICK, outcomes.clicked), (ORDER, outcomes.ordered)):
        for place in np.flatnonzero(marks).tolist():
            page = int(outcomes.shown_page[place])
            item = outcomes.items[int(outcomes.shown_item[place])]
            time = page * _SECONDS_PER_PAGE + 5
            yield ShownEvent(f"simulated-{page}", item, kind, time, simulated=True)


def item_rows(shop: SimulatedShop) -> Iterator[dict[str, object]]:
    """An item table for the segments: the first items are the popular ones."""
    for number in range(shop.items):
        yield {
            "item_id": f"simulated-{number}",
            "title": f"simulated item {number}",
            "category": [CATEGORIES[number % len(CATEGORIES)]],
            "popularity": float(shop.items // (number + 1)),
        }


def _popular(n: int, size: int, random: np.random.Generator) -> Ints:
    """Numbers below n, number k with a weight of 1 / (k + 1), int64 (size,)."""
    bounds = np.cumsum(1 / np.arange(1, n + 1))
    return np.searchsorted(bounds / bounds[-1], random.random(size)).astype(np.int64)
