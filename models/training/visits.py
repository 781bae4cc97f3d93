"""Searches of users, from events: who wanted what for which query, and what they chose before.

A search is one session's events of one query; it begins at its first event. Its history is what
the user clicked or ordered strictly before it began, rebuilt from the events (fields of a source
that claim to be a history are never read). For training only the events of the training side count
as history; for evaluation every earlier event does, as it would be known when the search is served.
"""

# pyarrow has no types of its own.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false
from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from index.dataset import Dataset

CLICK_WEIGHT = 0.5
ORDER_WEIGHT = 1.0
MAX_HISTORY = 200
_COLUMNS = ("session_id", "user_id", "query", "item_id", "kind")


@dataclass(frozen=True, slots=True)
class Visit:
    """One search that ended in clicks or orders: query, rows wanted, and the user's rows before.

    `wanted`: (item row, weight) pairs; `history`: item rows, oldest first, distinct. `user`,
    `session` and `began` (the source's seconds) say where it comes from.
    """

    query: str
    wanted: tuple[tuple[int, float], ...]
    history: tuple[int, ...]
    user: str | None = field(default=None, compare=False)
    session: str = field(default="", compare=False)
    began: float = field(default=0.0, compare=False)

    @property
    def clicked(self) -> list[int]:
        """Rows clicked or ordered."""
        return [row for row, _ in self.wanted]

    @property
    def ordered(self) -> list[int]:
        return [row for row, weight in self.wanted if weight >= ORDER_WEIGHT]


@dataclass(frozen=True, slots=True)
class Choice:
    """A click or order of a user's: when, which item row."""

    time: float
    row: int


def rows_by_id(dataset: Dataset) -> dict[str, int]:
    """item_id → item row."""
    return {name: row for row, name in enumerate(dataset.items.column("item_id").to_pylist())}


def read_visits(dataset: Dataset, split: str, *, max_history: int = MAX_HISTORY) -> list[Visit]:
    """The searches of a split that ended in a choice, by when they began.

    Choices without a query (browsing) count as history only.
    """
    row_of = rows_by_id(dataset)
    past = dataset.events_before_cut() if split == "train" else dataset.events
    chosen = read_choices(past, row_of)
    times_of = {user: [choice.time for choice in found] for user, found in chosen.items()}
    visits: list[Visit] = []
    for search in _searches(dataset.events_of(split), row_of):
        if not search.wanted:
            continue
        history: tuple[int, ...] = ()
        if search.user in chosen:
            end = bisect_left(times_of[search.user], search.began)
            history = last_distinct([c.row for c in chosen[search.user][:end]], max_history)
        wanted = tuple(search.wanted.items())
        visits.append(
            Visit(search.query, wanted, history, search.user, search.session, search.began)
        )
    return visits


def read_choices(events: pa.Table, row_of: dict[str, int]) -> dict[str, list[Choice]]:
    """user → what they clicked and ordered, oldest first (same time: by row)."""
    chosen: dict[str, list[Choice]] = defaultdict(list)
    if events.num_rows == 0:
        return chosen
    times = events.column("time").to_numpy()
    users, items, kinds = (
        events.column(name).to_pylist() for name in ("user_id", "item_id", "kind")
    )
    for i, user in enumerate(users):
        if user and kinds[i] != "impression":
            chosen[user].append(Choice(float(times[i]), row_of[items[i]]))
    for found in chosen.values():
        found.sort(key=lambda choice: (choice.time, choice.row))
    return chosen


def last_distinct(rows: list[int], count: int) -> tuple[int, ...]:
    """The last `count` distinct rows, oldest first, by when each was chosen last."""
    newest_first: dict[int, None] = {}
    for row in reversed(rows):
        if len(newest_first) == count:
            break
        newest_first[row] = None
    return tuple(reversed(newest_first))


@dataclass(frozen=True, slots=True)
class _Search:
    """A search being collected: `began` at its first event, `wanted` row → weight."""

    query: str
    user: str | None
    session: str
    began: float
    wanted: dict[int, float]


def _searches(events: pa.Table, row_of: dict[str, int]) -> list[_Search]:
    if events.num_rows == 0:
        return []
    times = events.column("time").to_numpy()
    columns = {name: events.column(name).to_pylist() for name in _COLUMNS}
    searches: dict[tuple[str, str], _Search] = {}
    for i in np.argsort(times, kind="stable").tolist():
        query = columns["query"][i]
        if not query:
            continue
        session, kind = columns["session_id"][i], columns["kind"][i]
        search = searches.setdefault(
            (session, query),
            _Search(query, columns["user_id"][i], session, float(times[i]), {}),
        )
        if kind != "impression":
            row = row_of[columns["item_id"][i]]
            weight = ORDER_WEIGHT if kind == "order" else CLICK_WEIGHT
            search.wanted[row] = max(weight, search.wanted.get(row, 0.0))
    return list(searches.values())
