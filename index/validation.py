"""Is a dataset fit to build on? Facts, problems (broken) and warnings (look at it).

Problems: a damaged directory is an ArtifactError already; here an empty catalogue, repeated or
empty ids, empty titles, dangling item references, grades and times that are not finite, unknown
event kinds, queries without a split or with two, and respellings of one query in different splits.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.dataset import EVENT_KINDS, Dataset
from index.splits import SPLIT_NAMES, cluster_queries

RELEVANT_SHARE_OF_RANGE = 0.75
GRADE_BINS = 10
LARGE_CLUSTER_SHARE = 0.05
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Validation:
    """A report. `facts` is plain JSON."""

    problems: list[str]
    warnings: list[str]
    facts: dict[str, Any]

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "problems": self.problems,
            "warnings": self.warnings,
            **self.facts,
        }


def validate_dataset(path: Path, *, relevant_from: float | None = None) -> Validation:
    """Check a dataset directory. Raises ArtifactError when it is missing or damaged.

    `relevant_from` is the grade from which an item counts as relevant; without it what the dataset
    states, else three quarters of the way from the lowest to the highest grade (2.5 on a scale of
    1 to 3).
    """
    dataset = Dataset.open(path)
    report = _Report(dataset)
    report.items()
    report.judgments(report.stated_grade() if relevant_from is None else relevant_from)
    report.events()
    report.users()
    report.splits()
    return Validation(report.problems, report.warnings, report.facts)


class _Report:
    """Collects findings table by table."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.facts: dict[str, Any] = {
            "dataset": str(dataset.path),
            "version": dataset.version,
            "source": dataset.manifest.get("source"),
            "simulated": dataset.simulated,
            "queries_derived": dataset.queries_derived,
        }

    def items(self) -> None:
        items = self._dataset.items
        ids, titles = items.column("item_id"), items.column("title")
        self.facts["items"] = {
            "rows": items.num_rows,
            "missing_share": _missing_shares(items),
            "duplicate_titles": items.num_rows - pc.count_distinct(titles).as_py(),
        }
        if not items.num_rows:
            self.problems.append("items: the catalogue is empty")
        self._problem_rows("items: repeated item_id", _repeated(ids))
        self._problem_rows("items: empty item_id", _matching(ids, pc.equal(ids, "")))
        self._problem_rows("items: empty title", _matching(ids, pc.equal(titles, "")))
        prices = items.column("price")
        wrong = pc.invert(pc.and_(pc.is_finite(prices), pc.greater_equal(prices, 0.0)))
        self._problem_rows("items: negative or infinite price", _matching(ids, wrong))

    def stated_grade(self) -> float | None:
        """The `relevant_from` of the manifest; what is no number is a problem."""
        stated = self._dataset.manifest.get("relevant_from")
        if stated is None or type(stated) in (int, float):
            return stated
        self.problems.append(f"manifest: relevant_from is {stated!r}, it must be a number")
        return None

    def judgments(self, relevant_from: float | None) -> None:
        judgments = self._dataset.judgments
        facts: dict[str, Any] = {"rows": judgments.num_rows}
        self.facts["judgments"] = facts
        self._dangling("judgments", judgments)
        if not judgments.num_rows:
            return
        grades = judgments.column("grade").to_numpy()
        queries = judgments.column("query").combine_chunks().dictionary_encode()
        self._problem_rows("judgments: grade is not finite", grades[~np.isfinite(grades)].tolist())
        finite = grades[np.isfinite(grades)]
        if relevant_from is None:
            low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
            relevant_from = low + RELEVANT_SHARE_OF_RANGE * (high - low)
        relevant = np.zeros(len(queries.dictionary), bool)
        relevant[queries.indices.to_numpy()[grades >= relevant_from]] = True
        facts["queries"] = len(relevant)
        facts["grades"] = _histogram(finite)
        facts["relevant_from"] = relevant_from
        facts["queries_without_relevant"] = int((~relevant).sum())
        if not relevant.any():
            self.warnings.append(f"judgments: no query has an item of grade ≥ {relevant_from:g}")
        pairs = pa.table([judgments.column("query"), judgments.column("item_id")], ["q", "i"])
        repeated = judgments.num_rows - pairs.group_by(["q", "i"]).aggregate([]).num_rows
        if repeated:
            self.problems.append(f"judgments: {repeated} repeated pairs of query and item")

    def events(self) -> None:
        events = self._dataset.events
        kinds: dict[str, int] = dict(Counter(events.column("kind").to_pylist()))
        self.facts["events"] = {
            "rows": events.num_rows,
            "kinds": kinds,
            "missing_share": _missing_shares(events),
            "sessions": pc.count_distinct(events.column("session_id")).as_py(),
            "users": pc.count_distinct(events.column("user_id"), mode="only_valid").as_py(),
            "split_marks": dict(Counter(events.column("split").drop_null().to_pylist())),
        }
        self._dangling("events", events)
        unknown = sorted(set(kinds) - set(EVENT_KINDS))
        self._problem_rows("events: unknown kind", unknown)
        times = events.column("time").to_numpy()
        self._problem_rows("events: time is not finite", times[~np.isfinite(times)].tolist())

    def users(self) -> None:
        users = self._dataset.users
        ids = users.column("user_id")
        self.facts["users"] = {"rows": users.num_rows}
        self._problem_rows("users: repeated user_id", _repeated(ids))
        if users.num_rows:
            named = pc.unique(self._dataset.events.column("user_id").drop_null())
            unknown = named.filter(pc.invert(pc.is_in(named, ids.combine_chunks())))
            if len(unknown):
                self.warnings.append(f"events: {len(unknown)} users are not in the users table")

    def splits(self) -> None:
        splits = self._dataset.splits
        queries = splits.column("query").to_pylist()
        split_of = self._dataset.split_of()
        sizes = Counter(split_of.values())
        self._problem_rows("splits: query with two splits", _repeated(splits.column("query")))
        unknown = sorted(set(sizes) - set(SPLIT_NAMES))
        self._problem_rows("splits: unknown split", unknown)
        for table in ("judgments", "events"):
            named = pc.unique(self._dataset.table(table).column("query").drop_null()).to_pylist()
            missing = [query for query in named if query not in split_of]
            self._problem_rows(f"splits: query of {table} without a split", missing)
        clusters = cluster_queries(queries)
        leaks = [c for c in clusters if len({split_of[query] for query in c}) > 1]
        self._problem_rows("splits: respellings in different splits", leaks)
        largest = max(map(len, clusters), default=0)
        self.facts["splits"] = {
            **{name: sizes[name] for name in SPLIT_NAMES},
            "clusters": len(clusters),
            "clusters_with_respellings": sum(len(c) > 1 for c in clusters),
            "largest_cluster": largest,
            "leaks": len(leaks),
        }
        if largest > max(LARGE_CLUSTER_SHARE * len(queries), 2) and len(queries) >= 100:
            self.warnings.append(f"splits: one cluster of respellings holds {largest} queries")

    def _dangling(self, name: str, table: pa.Table) -> None:
        ids = pc.unique(table.column("item_id"))
        known = self._dataset.items.column("item_id").combine_chunks()
        unknown = ids.filter(pc.invert(pc.is_in(ids, known)))
        self._problem_rows(f"{name}: unknown item", unknown.to_pylist())

    def _problem_rows(self, what: str, found: list[Any]) -> None:
        if found:
            shown = ", ".join(repr(value) for value in found[:_SHOWN])
            more = ", …" if len(found) > _SHOWN else ""
            self.problems.append(f"{what}: {len(found)} ({shown}{more})")


def _missing_shares(table: pa.Table) -> dict[str, float]:
    """Column → share of nulls, for the columns that may be null."""
    rows = max(table.num_rows, 1)
    return {
        field.name: round(table.column(field.name).null_count / rows, 4)
        for field in table.schema
        if field.nullable
    }


def _repeated(values: pa.ChunkedArray) -> list[Any]:
    counts = pc.value_counts(values)
    more = pc.greater(counts.field("counts"), 1)
    return counts.field("values").filter(more).to_pylist()


def _matching(ids: pa.ChunkedArray, mask: pa.ChunkedArray) -> list[Any]:
    return ids.filter(mask).to_pylist()


def _histogram(grades: np.ndarray[Any, Any]) -> dict[str, int]:
    """Grade → count; ranges where there are more than GRADE_BINS different grades."""
    values, counts = np.unique(grades, return_counts=True)
    if len(values) <= GRADE_BINS:
        return {f"{value:g}": int(n) for value, n in zip(values, counts, strict=True)}
    counts, edges = np.histogram(grades, GRADE_BINS)
    names = [f"{low:g}–{high:g}" for low, high in pairwise(edges)]
    return dict(zip(names, counts.tolist(), strict=True))
