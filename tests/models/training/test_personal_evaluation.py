"""Metrics by hand, resampling by user, slices, and a whole evaluation on a tiny pair."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.dataset import Dataset, write_dataset
from index.errors import ArtifactError, ConfigError
from index.snapshot import Snapshot
from index.taste import PersonalWeights
from models.training.cluster_bootstrap import ClusterBootstrap
from models.training.personal_evaluation import METHODS, evaluate_visits, metrics_of
from models.training.personal_weights import MIN_VISITS, fit_personal
from models.training.run_personal import run_personal, visit_search
from models.training.visit_slices import slices_of
from models.training.visits import Visit, read_visits
from tests.conftest import COLORS, THINGS, TinyPair, tiny_items


def test_metrics_by_hand() -> None:
    ranked = np.array([5, 3, 9, 4])
    assert metrics_of(ranked, [7]) == (0.0, 0.0, 0.0)
    assert metrics_of(ranked, [5]) == (1.0, 1.0, 1.0)
    second = 1 / np.log2(3)
    assert metrics_of(ranked, [3]) == pytest.approx((1.0, second, 0.5))
    fourth = 1 / np.log2(5)
    best = 1 + second
    assert metrics_of(ranked, [3, 4]) == pytest.approx((1.0, (second + fourth) / best, 0.5))
    assert metrics_of(np.arange(20), [12]) == (0.0, 0.0, 0.0)


def test_users_are_resampled_whole() -> None:
    """One user with many equal visits: the interval is that of two users, not of a hundred."""
    owners = ["a"] * 99 + ["b"]
    values = np.array([1.0] * 99 + [0.0])
    bootstrap = ClusterBootstrap(owners, np.random.default_rng(0))
    mean, (low, high) = bootstrap.interval(values)
    assert mean == pytest.approx(0.99)
    assert (low, high) == (0.0, 1.0)
    assert bootstrap.interval(values, np.zeros(100, np.bool_)) == (0.0, [0.0, 0.0])
    alone = ClusterBootstrap(range(1000), np.random.default_rng(0))
    _, (low, high) = alone.interval(np.tile([0.0, 1.0], 500))
    assert 0.46 < low < 0.5 < high < 0.54


def test_slices() -> None:
    def visit(query: str, row: int, history: tuple[int, ...] = ()) -> Visit:
        return Visit(query, ((row, 0.5),), history)

    visits = [
        visit("desk", 1, (2,)),
        visit("desk", 2),
        visit("what do i need for camping", 3),
        visit("soap without perfume", 4),
        visit("gluten-free flour", 1),
        visit("nonstick pan", 9),
    ]
    searched = Counter({"desk": 9, "what do i need for camping": 5, "soap without perfume": 4})
    found = slices_of(visits, [visit("lamp", 1)], searched)
    assert found["head"].tolist() == [True, True, False, False, False, False]
    assert found["middle"].tolist() == [False, False, True, True, False, False]
    assert found["tail"].tolist() == [False, False, False, False, True, True]
    assert found["question"].tolist() == [False, False, True, False, False, False]
    assert found["negation"].tolist() == [False, False, False, True, True, False]
    assert found["cold item"].tolist() == [False, True, True, True, False, True]
    assert found["history"].tolist() == [True, *[False] * 5]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Each user buys one colour only, whatever thing is searched: history tells the colour."""
    items = tiny_items().to_pylist()
    events: list[dict[str, Any]] = []
    splits = {"desk": "train", "lamp": "train", "shelf": "validation", "chair": "test"}
    for user in range(60):
        color = COLORS[user % 3]
        liked = [row for row in items if color in (row["color"] or [])]
        for step, thing in enumerate(THINGS):
            fitting = [row for row in liked if thing in row["title"]]
            events.append(
                {
                    "session_id": f"{user}-{step}",
                    "user_id": f"u{user}",
                    "query": thing,
                    "item_id": fitting[user % len(fitting)]["item_id"],
                    "kind": "order" if user % 2 else "click",
                    "time": float({"shelf": 3, "chair": 4}.get(thing, step)),
                }
            )
    return write_dataset(tmp_path / "d", items=items, events=events, splits=splits, simulated=True)


def test_a_history_that_tells_everything_helps(dataset: Dataset, tiny_pair: TinyPair) -> None:
    report = run_personal(dataset.path, tiny_pair.snapshot, tiny_pair.checkpoint, 48)
    assert report["simulated"]
    assert report["visits"] == report["visits_with_history"] == 60
    clicks = report["targets"]["click"]
    assert set(clicks["methods"]) == set(METHODS)
    assert report["targets"]["order"]["visits"] == 30
    assert report["weights"]["personal"]["taste"]["color"] > 0
    gained = clicks["differences"]["generative - generative_no_history"]
    assert gained["ci95"]["ndcg@10"][0] > 0.1
    for row in clicks["methods"].values():
        low, high = row["ci95"]["hr@10"]
        assert low <= row["hr@10"] <= high
    assert set(clicks["slices"]) >= {"head", "cold item", "history"}


def test_visits_without_history_are_served_as_nobodys(
    dataset: Dataset, tiny_pair: TinyPair
) -> None:
    searcher = visit_search(dataset, *opened(tiny_pair), 24)
    validation = read_visits(dataset, "validation")
    nobody = [Visit(v.query, v.wanted, ()) for v in read_visits(dataset, "test")]
    report = evaluate_visits(searcher, validation, nobody, {})
    difference = report["targets"]["click"]["differences"]["generative - generative_no_history"]
    assert difference["hr@10"] == difference["ndcg@10"] == 0


def test_too_few_visits_fit_nothing(dataset: Dataset, tiny_pair: TinyPair) -> None:
    searcher = visit_search(dataset, *opened(tiny_pair), 24)
    visits = read_visits(dataset, "validation")
    assert fit_personal(searcher, visits[: MIN_VISITS - 1]) is None
    fitted = fit_personal(searcher, visits)
    assert fitted is not None
    assert PersonalWeights.from_json(fitted.to_json()) == fitted
    with pytest.raises(ConfigError, match="no search of this split"):
        evaluate_visits(searcher, visits, [], {})


def test_parts_must_belong_together(
    dataset: Dataset, tiny_pair: TinyPair, other_snapshot: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="do not belong together"):
        run_personal(dataset.path, other_snapshot, tiny_pair.checkpoint, 8)
    other = write_dataset(tmp_path / "o", items=[{"item_id": "x", "title": "x"}])
    with pytest.raises(ArtifactError, match="another catalogue"):
        run_personal(other.path, tiny_pair.snapshot, tiny_pair.checkpoint, 8)


def test_training_visits_can_be_measured(dataset: Dataset, tiny_pair: TinyPair) -> None:
    paths = (dataset.path, tiny_pair.snapshot, tiny_pair.checkpoint)
    report = run_personal(*paths, 8, split="train", max_visits=30)
    assert report["split"] == "train"
    assert report["visits"] == 30
    with pytest.raises(ConfigError, match="no split 'tset'"):
        run_personal(*paths, 8, split="tset")


def opened(pair: TinyPair) -> tuple[Snapshot, Any]:
    from models.checkpoint import Checkpoint

    return Snapshot.open(pair.snapshot), Checkpoint.open(pair.checkpoint)
