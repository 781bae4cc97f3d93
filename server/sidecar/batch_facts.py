"""A batch in the figures that the gate reads, and what earlier rounds say is usual."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from index.dataset import Dataset
from models.training.challenge import Difference
from models.training.cluster_bootstrap import ClusterBootstrap
from models.training.gate import BatchFacts
from server.experiment.records import IMPRESSION
from server.sidecar.batch import BatchRows

MIN_GRADED = 30
_SEED = 7


def facts_of(batch: BatchRows, dataset: Dataset, usual_click_rate: float | None) -> BatchFacts:
    """Clicks here are items clicked or ordered, once a search."""
    rows: list[dict[str, Any]] = batch.rows.to_pylist()
    shown = {(row["session_id"], row["item_id"]) for row in rows if row["kind"] == IMPRESSION}
    chosen = {(row["session_id"], row["item_id"]): row for row in rows if row["kind"] != IMPRESSION}
    users = Counter(row["user_id"] or row["session_id"] for row in chosen.values())
    items = Counter(row["item_id"] for row in chosen.values())
    clicks = len(chosen)
    return BatchFacts(
        searches=len({session for session, _ in shown}),
        clicks=clicks,
        users=len(users),
        unmatched=batch.unmatched,
        user_share=_top(users),
        item_share=_top(items),
        click_rate=len(shown & chosen.keys()) / len(shown) if shown else 0.0,
        usual_click_rate=usual_click_rate,
        grade_difference=_grade_difference(rows, dataset),
        simulated=batch.simulated,
        of_simulated=dataset.simulated,
    )


def usual_click_rate(batches: list[Mapping[str, Any]]) -> float | None:
    """Of the facts of accepted batches; None without any."""
    clicks = sum(batch["click_rate"] * batch["searches"] for batch in batches)
    searches = sum(batch["searches"] for batch in batches)
    return clicks / searches if searches else None


def _grade_difference(rows: list[dict[str, Any]], dataset: Dataset) -> Difference | None:
    """Mean grade of clicked items less that of the judged items shown in the same search."""
    grades = _grades(dataset)
    if not grades:
        return None
    of_search: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        grade = grades.get((row["query"], row["item_id"]))
        if row["kind"] == IMPRESSION and grade is not None:
            of_search[row["session_id"]].append(grade)
    found: list[float] = []
    owners: list[str] = []
    for row in rows:
        grade = grades.get((row["query"], row["item_id"]))
        beside = of_search.get(row["session_id"])
        if row["kind"] != IMPRESSION and grade is not None and beside:
            found.append(grade - float(np.mean(beside)))
            owners.append(row["query"])
    if len(found) < MIN_GRADED:
        return None
    bootstrap = ClusterBootstrap(owners, np.random.default_rng(_SEED))
    mean, (low, high) = bootstrap.interval(np.array(found, np.float64))
    return Difference(mean, low, high)


def _grades(dataset: Dataset) -> dict[tuple[str, str], float]:
    columns = (dataset.judgments.column(name).to_pylist() for name in ("query", "item_id", "grade"))
    return {(query, item): grade for query, item, grade in zip(*columns, strict=True)}


def _top(counts: Counter[str]) -> float:
    """The share of the commonest."""
    total = sum(counts.values())
    return counts.most_common(1)[0][1] / total if total else 0.0
