"""What users of the simulated demo shop do: searches, impressions, clicks, orders.

Results come from the baseline ranker with noise, the same for everybody; tastes show in clicks and
orders only.

    P(click | user, query, item, position) = position^-ETA · σ(a_grade + taste(user, item))
    P(order | click) = σ(o + o_grade·grade + taste(user, item)) if the item is in stock

(position-based click model; σ is the logistic function).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from index.importers.demo_items import Bools, DemoItems, Floats, Ints
from index.importers.demo_queries import DemoQuery, grades
from index.importers.demo_ranker import BaselineRanker
from index.importers.demo_table import ShopTable
from index.importers.demo_users import (
    DAY_S,
    DAYS,
    EPOCH_S,
    DemoUsers,
    departments_of,
    taste,
)

IMPRESSIONS = 10
CANDIDATES = 80  # of a query, from which each session's list is drawn
CONSTANT_NOISE = 0.5  # standard deviation, in units of score
SESSION_NOISE = 0.6  # scale of a Gumbel distribution
ETA = 0.6
CLICK_BIAS = np.array([-5.6, -4.2, -3.0, -2.0])  # by grade
ORDER_BIAS = -4.6
ORDER_PER_GRADE = 0.6
STRAY_INTEREST = 0.004  # in any department, besides
SAME_CATEGORY_SHARE = 0.45  # of the sessions go on with what the user looked for before
CORRECTED_SHARE = 0.5  # of the misspelt searches are followed by the right spelling
HOURS = np.array([2, 1, 1, 1, 1, 2, 3, 5, 7, 8, 8, 8, 9, 8, 7, 7, 8, 9, 11, 13, 14, 12, 8, 4.0])


@dataclass(frozen=True, slots=True)
class Sessions:
    """One search each, ordered by time; `items`, `clicked`, `ordered`: (n, IMPRESSIONS)."""

    user: Ints
    query: Ints
    time: Floats
    items: Ints
    clicked: Bools
    ordered: Bools


def simulate(
    table: ShopTable,
    items: DemoItems,
    queries: list[DemoQuery],
    demand: Floats,
    users: DemoUsers,
    n_sessions: int,
    rng: np.random.Generator,
) -> Sessions:
    """`n_sessions` searches over DAYS days with what was shown, clicked and ordered."""
    user, query, time = _searches(table, items, queries, demand, users, n_sessions, rng)
    count = min(CANDIDATES, len(items))
    shown_count = min(IMPRESSIONS, count)
    ranker = BaselineRanker(items)
    asked, place = np.unique(query, return_inverse=True)
    candidates = np.zeros((len(asked), count), dtype=np.int64)
    scores = np.zeros((len(asked), count))
    grade = np.zeros((len(asked), count), dtype=np.int64)
    for row, number in enumerate(asked):
        total = ranker.scores(queries[number].text)
        # The baseline's constant errors: what it mistakes, it mistakes for everybody.
        total += rng.normal(0, CONSTANT_NOISE, len(items))
        candidates[row] = np.argsort(-total, kind="stable")[:count]
        scores[row] = total[candidates[row]]
        grade[row] = grades(queries[number], items, table)[candidates[row]]
    drawn = scores[place] + rng.gumbel(0, SESSION_NOISE, (len(query), count))
    top = np.argsort(-drawn, axis=1, kind="stable")[:, :shown_count]
    shown = np.take_along_axis(candidates[place], top, axis=1)
    level = np.take_along_axis(grade[place], top, axis=1)
    liking = taste(users, items, user[:, None], shown)
    seen = np.arange(1, shown_count + 1) ** -ETA
    clicked = rng.random(shown.shape) < seen * _sigmoid(CLICK_BIAS[level] + liking)
    wanted = _sigmoid(ORDER_BIAS + ORDER_PER_GRADE * level + liking)
    ordered = clicked & (items.stock[shown] > 0) & (rng.random(shown.shape) < wanted)
    # One order a search: of several, the one that is liked best.
    best = np.where(ordered, liking, -np.inf).argmax(axis=1)
    ordered &= np.arange(shown_count)[None, :] == best[:, None]
    return Sessions(user, query, time, shown, clicked, ordered)


def _sigmoid(x: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-x))


def _searches(
    table: ShopTable,
    items: DemoItems,
    queries: list[DemoQuery],
    demand: Floats,
    users: DemoUsers,
    n_sessions: int,
    rng: np.random.Generator,
) -> tuple[Ints, Ints, Floats]:
    """(user, query, time) of each session, by time."""
    n_users = len(users.attributes)
    activity = rng.lognormal(0, 1.0, n_users)
    counts = rng.multinomial(n_sessions, activity / activity.sum())
    column = {name: number for number, name in enumerate(departments_of(table))}
    homes = [_homes(query, items) for query in queries]
    department = np.array([column[table.categories[home[0]].department] for home in homes])
    category = np.array([home[0] for home in homes])
    in_category = {c: np.flatnonzero(category == c) for c in np.unique(category)}
    fit = _QueryFit(items, queries, users)
    found: list[tuple[float, int, int]] = []
    for user in np.flatnonzero(counts):
        weights = demand * (STRAY_INTEREST + users.department[user])[department] * fit.of(int(user))
        cumulative = np.cumsum(weights)
        previous: int | None = None
        for start in _times(float(users.joined[user]), int(counts[user]), rng):
            time = start
            if previous is not None and queries[previous].right is not None:
                right = queries[previous].right
                if rng.random() < CORRECTED_SHARE and right is not None:
                    number, time = right, found[-1][0] + float(rng.uniform(15, 120))
                    found.append((time, int(user), number))
                    previous = number
                    continue
            if previous is not None and rng.random() < SAME_CATEGORY_SHARE:
                near = in_category[category[previous]]
                number = int(near[_draw(np.cumsum(weights[near]), rng)])
                time = found[-1][0] + float(rng.uniform(30, 1200))
            else:
                number = _draw(cumulative, rng)
            time = min(time, EPOCH_S + DAYS * DAY_S - 1800.0)
            found.append((time, int(user), number))
            previous = number
    found.sort()
    return (
        np.array([user for _, user, _ in found], dtype=np.int64),
        np.array([number for _, _, number in found], dtype=np.int64),
        np.array([time for time, _, _ in found]),
    )


def _draw(cumulative: Floats, rng: np.random.Generator) -> int:
    at = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return min(at, len(cumulative) - 1)


def _homes(query: DemoQuery, items: DemoItems) -> tuple[int, ...]:
    """The query's categories; without any, those of the items that it asks for."""
    if query.categories:
        return query.categories
    fitting = np.ones(len(items), dtype=np.bool_)
    for facet, value in query.wanted:
        fitting &= items.facets[facet].of(value)
    homes = np.unique(items.category[fitting])
    kept = tuple(int(c) for c in homes if c not in query.excluded_categories)
    return kept or (0,)


def _times(joined: float, count: int, rng: np.random.Generator) -> Floats:
    """Sorted session starts after `joined`, with quiet nights."""
    first = int((joined - EPOCH_S) // DAY_S)
    days = rng.integers(first, DAYS, count)
    hours = rng.choice(24, count, p=HOURS / HOURS.sum())
    times = EPOCH_S + days * DAY_S + hours * 3600.0 + rng.uniform(0, 3600.0, count)
    # On the day of joining, not before the hour of joining.
    return np.sort(np.where(times < joined, joined + rng.uniform(0, 3600.0, count), times))


class _QueryFit:
    """How much more a user asks for what fits: brands, colours and clothes of their own."""

    def __init__(self, items: DemoItems, queries: list[DemoQuery], users: DemoUsers) -> None:
        self.users = users
        self.named = {
            facet: self._numbers(items, queries, facet) for facet in ("brand", "color", "material")
        }
        audiences = [dict(query.wanted).get("audience", "") for query in queries]
        self.women = np.array([audience == "women" for audience in audiences])
        self.men = np.array([audience == "men" for audience in audiences])

    @staticmethod
    def _numbers(items: DemoItems, queries: list[DemoQuery], facet: str) -> Ints:
        column = {value: number for number, value in enumerate(items.facets[facet].values)}
        return np.array([column.get(dict(query.wanted).get(facet, ""), -1) for query in queries])

    def of(self, user: int) -> Floats:
        fit = np.ones(len(self.women))
        for facet, number in self.named.items():
            liking = np.append(getattr(self.users, facet)[user], 0.0)  # -1: none named
            fit *= np.exp(1.2 * liking)[number]
        unlike = self.men if self.users.female[user] else self.women
        return np.where(unlike, 0.15 * fit, fit)
