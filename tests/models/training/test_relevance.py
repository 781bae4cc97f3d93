from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.dataset import Dataset, write_dataset
from models.training.relevance import relevant_grade, relevant_rows

ITEMS = [{"item_id": name, "title": name} for name in "abcd"]
SPLITS = {"q1": "train", "q2": "validation", "q3": "test", "q4": "test"}
GRADES = [("q1", "a", 1.0), ("q1", "b", 2.5), ("q2", "d", 3.0), ("q2", "a", 2.49), ("q3", "c", 1.5)]


def judged(path: Path, **manifest: Any) -> Dataset:
    rows = [{"query": q, "item_id": i, "grade": g} for q, i, g in GRADES]
    return write_dataset(path / "d", items=ITEMS, judgments=rows, splits=SPLITS, **manifest)


def as_lists(found: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {query: rows.tolist() for query, rows in found.items()}


def test_the_grade_is_three_quarters_up_the_scale(tmp_path: Path):
    dataset = judged(tmp_path)
    assert relevant_grade(dataset) == pytest.approx(2.5)
    assert as_lists(relevant_rows(dataset, "train")) == {"q1": [1]}
    assert as_lists(relevant_rows(dataset, "validation")) == {"q2": [3]}
    assert relevant_rows(dataset, "test") == {}


def test_a_stated_grade_wins(tmp_path: Path):
    dataset = judged(tmp_path, relevant_from=1.5)
    assert relevant_grade(dataset) == 1.5
    assert as_lists(relevant_rows(dataset, "validation")) == {"q2": [0, 3]}
    assert as_lists(relevant_rows(dataset, "test")) == {"q3": [2]}


def test_without_judgments_clicks_and_orders_count(tmp_path: Path):
    def event(query: str | None, item: str, kind: str, split: str | None = None) -> dict[str, Any]:
        row = {"session_id": "s", "query": query, "item_id": item, "kind": kind}
        return row | {"time": 1.0, "split": split}

    events = [
        event("q3", "c", "click"),
        event("q3", "a", "order"),
        event("q3", "a", "click"),
        event("q3", "b", "impression"),
        event("q4", "b", "impression"),
        event(None, "d", "click", "test"),
        event("q1", "d", "click"),
    ]
    dataset = write_dataset(tmp_path / "d", items=ITEMS, events=events, splits=SPLITS)
    assert as_lists(relevant_rows(dataset, "test")) == {"q3": [0, 2]}
    assert as_lists(relevant_rows(dataset, "train")) == {"q1": [3]}
    assert relevant_rows(dataset, "validation") == {}


def test_a_catalogue_alone_has_nothing_relevant(tmp_path: Path):
    dataset = write_dataset(tmp_path / "d", items=ITEMS, splits={})
    assert relevant_rows(dataset, "validation") == {}
