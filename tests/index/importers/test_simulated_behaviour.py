"""Simulated behaviour: repeatable, marked, split by query and time, and shaped by the model."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.dataset import Dataset, write_dataset
from index.errors import ArtifactError, ConfigError, DataError
from index.importers.simulated_behaviour import (
    IMPRESSIONS,
    SimulationSettings,
    simulate_behaviour,
)
from index.validation import validate_dataset

BRANDS = [f"brand{n}" for n in range(30)]
WOODS = ("oak", "walnut", "birch", "cherry", "maple", "ebony", "cedar", "bamboo")
THINGS = [f"{wood} {a}" for a in ("desk", "lamp", "sofa", "rug", "vase") for wood in WOODS]
SETTINGS = SimulationSettings(users=40, sessions=1500, seed=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 things of 10 items each; every second item of a thing is relevant."""
    items: list[dict[str, Any]] = []
    judgments: list[dict[str, Any]] = []
    for number in range(400):
        thing = THINGS[number // 10]
        items.append(
            {
                "item_id": f"i{number}",
                "title": f"{thing} model {number}",
                "brand": BRANDS[number % 30],
                "color": [("red", "blue", "green", "grey", "pink", "teal", "gold")[number % 7]],
            }
        )
        judgments.append(
            {"query": thing, "item_id": f"i{number}", "grade": 3.0 if number % 2 else 1.0}
        )
    path = tmp_path_factory.mktemp("source") / "d"
    return write_dataset(path, items=items, judgments=judgments, source="shop", relevant_from=2.5)


@pytest.fixture(scope="module")
def simulated(source: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return simulate_behaviour(source, tmp_path_factory.mktemp("simulated") / "d", SETTINGS)


def test_it_says_that_it_is_simulated_and_keeps_what_is_real(
    source: Dataset, simulated: Dataset
) -> None:
    assert simulated.simulated
    assert "simulated" in simulated.manifest["source"]
    assert simulated.manifest["relevant_from"] == 2.5
    assert simulated.items.equals(source.items)
    assert simulated.judgments.equals(source.judgments)
    assert simulated.split_of() == source.split_of()
    assert validate_dataset(simulated.path).problems == []


def test_the_seed_decides(source: Dataset, simulated: Dataset, tmp_path: Path) -> None:
    again = simulate_behaviour(source, tmp_path / "again", SETTINGS)
    assert again.version == simulated.version
    other = SimulationSettings(users=40, sessions=1500, seed=4)
    assert simulate_behaviour(source, tmp_path / "o", other).version != simulated.version


def test_marks_follow_time_and_both_must_agree(simulated: Dataset) -> None:
    ends: dict[str, list[float]] = defaultdict(list)
    for event in simulated.events.to_pylist():
        if event["kind"] == "impression":
            ends[event["split"]].append(event["time"])
    assert max(ends["train"]) < min(ends["validation"])
    assert max(ends["validation"]) < min(ends["test"])
    split_of = simulated.split_of()
    for split in ("train", "validation", "test"):
        found = simulated.events_of(split).to_pylist()
        assert found
        assert all(e["split"] == split == split_of[e["query"]] for e in found)


def test_clicks_follow_position_grade_and_taste(simulated: Dataset) -> None:
    shown: Counter[tuple[str, object]] = Counter()
    clicked: Counter[tuple[str, object]] = Counter()
    of_user: dict[str, Counter[str]] = defaultdict(Counter)
    brand_of = dict(
        zip(
            simulated.items.column("item_id").to_pylist(),
            simulated.items.column("brand").to_pylist(),
            strict=True,
        )
    )
    for event in simulated.events.to_pylist():
        relevant = int(event["item_id"][1:]) % 2
        keys = (("position", event["position"] <= 3), ("grade", relevant))
        if event["kind"] == "impression":
            shown.update(keys)
        elif event["kind"] == "click":
            clicked.update(keys)
            of_user[event["user_id"]][brand_of[event["item_id"]]] += 1
    rate = {key: clicked[key] / shown[key] for key in shown}
    assert rate["position", True] > 1.3 * rate["position", False]
    assert rate["grade", 1] > 3 * rate["grade", 0]
    # Thirty brands, twelve liked: a user's clicks keep to fewer brands than chance would.
    busiest = max(of_user.values(), key=Counter.total)
    top = sum(count for _, count in busiest.most_common(12))
    assert top > 0.75 * busiest.total()


def test_sessions_are_whole(simulated: Dataset) -> None:
    sessions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in simulated.events.to_pylist():
        sessions[event["session_id"]].append(event)
    assert len(sessions) == SETTINGS.sessions
    for events in sessions.values():
        kinds = Counter(event["kind"] for event in events)
        assert kinds["impression"] == IMPRESSIONS
        assert kinds["order"] <= min(kinds["click"], 1)
        assert len({event["user_id"] for event in events}) == 1
        first = {e["item_id"]: e["time"] for e in events if e["kind"] == "impression"}
        assert all(e["time"] >= first[e["item_id"]] for e in events)
    users = np.array(list(Counter(s[0]["user_id"] for s in sessions.values()).values()))
    assert users.max() > 2 * users.mean()


def test_what_cannot_be_simulated_is_refused(
    source: Dataset, simulated: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="has events already"):
        simulate_behaviour(simulated, tmp_path / "x", SETTINGS)
    bare = write_dataset(tmp_path / "bare", items=[{"item_id": "a", "title": "a"}])
    with pytest.raises(DataError, match="has no judgments"):
        simulate_behaviour(bare, tmp_path / "x", SETTINGS)
    with pytest.raises(ArtifactError):
        simulate_behaviour(source, simulated.path, SETTINGS)
    with pytest.raises(ConfigError, match="at least 1"):
        SimulationSettings(users=0)
