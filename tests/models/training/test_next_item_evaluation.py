"""Next-item cases and figures: what counts as history, and a sequence that repeats itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from index.dataset import Dataset, write_dataset
from index.errors import ConfigError
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.training.next_item_evaluation import (
    METHODS,
    NextCase,
    evaluate_next,
    read_cases,
)
from models.training.run_personal import visit_search
from tests.conftest import TinyPair, tiny_items


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Everybody takes item 0, 1, 2 … in turn, from a start of their own; one is new."""
    events: list[dict[str, Any]] = []
    for user in range(12):
        for step in range(5):
            events.append(
                {
                    "session_id": f"{user}-{step}",
                    "user_id": f"u{user}",
                    "query": None,
                    "item_id": f"i{(user + step) % 8}",
                    "kind": "order",
                    "time": float(step),
                    "split": "test" if step == 4 else "train",
                }
            )
    events.append(events[0] | {"user_id": "new", "session_id": "n", "split": "test"})
    return write_dataset(tmp_path / "d", items=tiny_items().to_pylist(), events=events)


def test_cases_are_marked_choices_with_a_past(dataset: Dataset) -> None:
    cases = read_cases(dataset, "test")
    assert len(cases) == 12
    assert cases[0] == NextCase("u0", (0, 1, 2, 3), 4)
    assert all(len(case.history) == 4 for case in cases)
    assert read_cases(dataset, "validation") == []


def test_a_repeating_sequence_is_foretold_by_co_occurrence(
    dataset: Dataset, tiny_pair: TinyPair
) -> None:
    snapshot, checkpoint = Snapshot.open(tiny_pair.snapshot), Checkpoint.open(tiny_pair.checkpoint)
    searcher = visit_search(dataset, snapshot, checkpoint, 16)
    sequences = [[(user + step) % 8 for step in range(4)] for user in range(12)]
    report = evaluate_next(searcher, read_cases(dataset, "test"), sequences)
    assert report["cases"] == 12
    assert set(report["methods"]) == set(METHODS)
    assert report["methods"]["co_occurrence"]["hr@10"] == 1.0
    for row in report["methods"].values():
        low, high = row["ci95"]["hr@10"]
        assert 0 <= low <= row["hr@10"] <= high <= 1
    with pytest.raises(ConfigError, match="no choice of this split"):
        evaluate_next(searcher, [], sequences)
