"""Planted leaks, one of each kind, and sound data that must pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from index.dataset import Dataset, write_dataset
from index.errors import DataError
from models.training.leakage import check_leakage, find_leaks
from models.training.material import read_material
from models.training.visits import read_visits

ITEMS = [{"item_id": name, "title": f"thing {name}"} for name in "abcdef"]
SPLITS = {"oak desk": "train", "lamp": "train", "steel shelf": "test", "green rug": "validation"}


def event(
    time: float,
    item: str,
    query: str | None,
    session: str,
    *,
    split: str | None = None,
    user: str = "u",
    kind: str = "click",
) -> dict[str, Any]:
    return {
        "session_id": session,
        "user_id": user,
        "query": query,
        "item_id": item,
        "kind": kind,
        "time": time,
        "split": split,
    }


EVENTS = [
    event(1, "a", "oak desk", "s1", split="train"),
    event(2, "b", "lamp", "s2", split="train"),
    event(3, "c", "green rug", "s3", split="validation"),
    event(4, "d", "steel shelf", "s4", split="test"),
]


def dataset(
    path: Path, events: list[dict[str, Any]] = EVENTS, splits: dict[str, str] = SPLITS
) -> Dataset:
    return write_dataset(path / "d", items=ITEMS, events=events, splits=splits)


def test_sound_data_passes(tmp_path: Path) -> None:
    made = dataset(tmp_path)
    assert find_leaks(made, read_visits(made, "train"), ["oak desk", "lamp"]) == []
    assert [visit.history for visit in read_material(made).visits] == [(), (0,)]


@pytest.mark.parametrize("query", ["steel shelf", "shelf, steel", "steele shelf", "Steel Shelf"])
def test_a_held_out_query_or_a_respelling_of_it(tmp_path: Path, query: str) -> None:
    made = dataset(tmp_path)
    [leak] = find_leaks(made, [], ["oak desk", query])
    assert leak.startswith("training queries that are held out, or respellings: 1")
    with pytest.raises(DataError, match="knows what will be measured"):
        check_leakage(made, [], [query])


def test_a_respelling_on_both_sides_stops_training(tmp_path: Path) -> None:
    splits = SPLITS | {"desk oak": "test"}
    made = dataset(tmp_path, [*EVENTS, event(9, "e", "desk oak", "s9", split="test")], splits)
    with pytest.raises(DataError, match=r"respellings: 1 \('oak desk'\)"):
        read_material(made)


def test_an_event_after_the_cut(tmp_path: Path) -> None:
    late = event(5, "e", "lamp", "s5", split="train")
    made = dataset(tmp_path, [*EVENTS, late])
    [leak] = find_leaks(made, read_visits(made, "train"))
    assert "after the user's first held-out event: 1 ('u at 5')" in leak
    with pytest.raises(DataError, match="held-out event"):
        read_material(made)


def test_another_user_may_be_later(tmp_path: Path) -> None:
    made = dataset(tmp_path, [*EVENTS, event(5, "e", "lamp", "s5", split="train", user="v")])
    assert find_leaks(made, read_visits(made, "train")) == []


def test_a_test_target_as_a_training_target(tmp_path: Path) -> None:
    made = dataset(tmp_path)
    [stolen] = read_visits(made, "test")
    leaks = find_leaks(made, [replace(stolen, history=())])
    assert any("held-out ones: 1 ('s4: steel shelf')" in leak for leak in leaks)


def test_histories_with_items_from_the_future(tmp_path: Path) -> None:
    """The trap of sources with ready-made histories: they hold the item that is searched next."""
    made = dataset(tmp_path)
    first, second = read_visits(made, "train")
    assert find_leaks(made, [first, second]) == []
    own_target = replace(first, history=(0,))
    later = replace(first, history=(1,))
    held_out = replace(second, history=(0, 3))
    never = replace(second, history=(5,))
    for planted in (own_target, later, held_out, never):
        [leak] = find_leaks(made, [planted])
        assert leak.startswith("histories with items not chosen before the search: 1")


def test_histories_of_somebody_else(tmp_path: Path) -> None:
    made = dataset(tmp_path)
    _, second = read_visits(made, "train")
    [leak] = find_leaks(made, [replace(second, user="stranger")])
    assert leak.startswith("histories")
