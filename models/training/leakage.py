"""Nothing that is measured may be known in training: checks that fail the run.

    queries   no training query equals a validation or test query or is a respelling of one
              (`index.splits.cluster_queries`)
    cut       where events are marked, no training event of a user is later than the user's first
              marked validation or test event
    targets   nothing chosen in a held-out search is a target of a training search of the same
              session, and no history of a training search contains a choice made in one
    histories every row of a training search's history was chosen by that user strictly before the
              search began (sources whose ready-made histories hold items from the future)

The checks read the dataset's own tables, not the code that made the material, so they also catch
material from elsewhere. `find_leaks` lists what it finds, `check_leakage` raises.
"""

# pyarrow has no types of its own.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from index.dataset import Dataset
from index.errors import DataError
from index.splits import cluster_queries
from models.training.visits import Visit

HELD_OUT = ("validation", "test")
SHOWN = 3


def check_leakage(dataset: Dataset, visits: Sequence[Visit], queries: Iterable[str] = ()) -> None:
    """Raise DataError for the first kind of leak that is found; `queries`: trained on besides."""
    leaks = find_leaks(dataset, visits, queries)
    if leaks:
        raise DataError(
            f"training material knows what will be measured: {leaks[0]}; import the dataset again, "
            "or see `onesearch data validate`",
            path=dataset.path,
        )


def find_leaks(dataset: Dataset, visits: Sequence[Visit], queries: Iterable[str] = ()) -> list[str]:
    """One line for each kind of leak in the training searches `visits` and `queries`."""
    trained = {visit.query for visit in visits} | set(queries)
    events = _Events(dataset)
    found = (
        _lines("training queries that are held out, or respellings", _queries(dataset, trained)),
        _lines("training events after the user's first held-out event", events.after_cut()),
        _lines("training searches that are held-out ones", events.targets(visits)),
        _lines("histories with items not chosen before the search", events.histories(visits)),
    )
    return [line for line in found if line]


def _lines(what: str, found: list[str]) -> str:
    if not found:
        return ""
    more = ", …" if len(found) > SHOWN else ""
    return f"{what}: {len(found)} ({', '.join(map(repr, found[:SHOWN]))}{more})"


def _queries(dataset: Dataset, trained: set[str]) -> list[str]:
    held = {query for split in HELD_OUT for query in dataset.queries(split)}
    leaks: list[str] = []
    # With every query at hand: which spellings are one depends on which are common.
    everything = trained | set(dataset.split_of())
    for cluster in cluster_queries(sorted(everything)):
        if not held.isdisjoint(cluster):
            leaks += (query for query in cluster if query in trained)
    return sorted(leaks)


class _Events:
    """The dataset's events, arranged for the checks."""

    def __init__(self, dataset: Dataset) -> None:
        events = dataset.events
        columns: dict[str, list[Any]] = {
            name: events.column(name).to_pylist()
            for name in ("session_id", "user_id", "query", "item_id", "kind", "time", "split")
        }
        split_of = dataset.split_of()
        row_of = {name: row for row, name in enumerate(dataset.items.column("item_id").to_pylist())}
        self._first_held: dict[str, float] = {}
        self._marked_train: list[tuple[str, float]] = []
        self._held_targets: set[tuple[str, str, int]] = set()
        # (user, row) → times it was chosen in events that training may know, and in others.
        self._open: dict[tuple[str, int], float] = {}
        for session, user, query, item, kind, time, mark in zip(*columns.values(), strict=True):
            row = row_of.get(item, -1)
            if user and mark in HELD_OUT:
                self._first_held[user] = min(time, self._first_held.get(user, time))
            elif user and mark == "train":
                self._marked_train.append((user, time))
            if kind == "impression":
                continue
            of_query = split_of.get(query, "train") if query else "train"
            if query and (mark in HELD_OUT or of_query in HELD_OUT):
                self._held_targets.add((session, query, row))
            known = mark == "train" or (mark is None and of_query == "train")
            if user and known:
                key = (user, row)
                self._open[key] = min(time, self._open.get(key, time))

    def after_cut(self) -> list[str]:
        return [
            f"{user} at {time:g}"
            for user, time in self._marked_train
            if time > self._first_held.get(user, time)
        ]

    def targets(self, visits: Sequence[Visit]) -> list[str]:
        """Training searches that share session, query and item with a held-out one."""
        by_search: dict[tuple[str, str], set[int]] = defaultdict(set)
        for session, query, row in self._held_targets:
            by_search[session, query].add(row)
        return [
            f"{visit.session}: {visit.query}"
            for visit in visits
            if not by_search.get((visit.session, visit.query), set()).isdisjoint(visit.clicked)
        ]

    def histories(self, visits: Sequence[Visit]) -> list[str]:
        """Training searches whose history holds what the user did not choose before, in events
        that training may know."""
        return [
            f"{visit.session}: {visit.query}"
            for visit in visits
            if any(
                self._open.get((visit.user or "", row), visit.began) >= visit.began
                for row in visit.history
            )
        ]
