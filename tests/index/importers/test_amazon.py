"""Amazon: derived queries, category prefixes, split marks; a small folder and the real one."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from index.dataset import Dataset
from index.errors import ConfigError, DataError
from index.importers.amazon import derive_queries
from index.importers.formats import import_dataset
from index.importers.mapping import parse_mapping

ITEMS = {
    "0": {
        "title": "Stanley Staples &amp; Tacks, Steel (1000 Count)",
        "description": "['First.', \"<b>Second</b>\"]",
        "brand": "Stanley",
        "categories": "",
    },
    "1": {"title": "Pilot G2 Gel Ink Pens", "description": "", "brand": "", "categories": ""},
}


def write_category(folder: Path, name: str, items: Any, sequences: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"amazon_{name}_items.json.gz").write_bytes(gzip.compress(json.dumps(items).encode()))
    lines = "".join(json.dumps(row) + "\n" for row in sequences)
    (folder / f"amazon_{name}_sequences.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "s"
    steps = {"user": "A1", "items": [0, 1, 9, 0], "split": ["train", "valid", "test"]}
    write_category(folder, "Office", ITEMS, [steps, {"user": "A2", "items": 3}])
    write_category(folder, "Tools", {"0": {"title": "Claw Hammer"}}, [])
    return folder


def test_purchases_become_orders(source: Path, tmp_path: Path) -> None:
    imported = import_dataset("amazon", source, tmp_path / "d")
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.queries_derived
    assert dataset.items.column("item_id").to_pylist() == ["Office:0", "Office:1", "Tools:0"]
    first = dataset.items.to_pylist()[0]
    assert first["title"] == "Stanley Staples & Tacks, Steel (1000 Count)"
    assert first["description"] == "First. Second"
    assert first["category"] == ["Office"]
    events = dataset.events.to_pylist()
    assert [(e["item_id"], e["time"], e["split"]) for e in events] == [
        ("Office:0", 0.0, "train"),
        ("Office:1", 1.0, "validation"),
        ("Office:0", 3.0, None),
    ]
    assert {e["kind"] for e in events} == {"order"}
    assert {e["user_id"] for e in events} == {"Office:A1"}
    split_of = dataset.split_of()
    for event in events:
        side = event["split"] or "train"
        assert event["query"] is None or split_of[event["query"]] == side
    assert dataset.events_of("train").num_rows == 2
    assert imported.summary.rejected == {
        "events": {"item_id: unknown item": 1, "not a sequence": 1}
    }
    assert any("derived" in note for note in imported.summary.notes)


def test_a_mapping_chooses_categories(source: Path, tmp_path: Path) -> None:
    mapping = parse_mapping({"categories": ["Tools"]})
    imported = import_dataset("amazon", source, tmp_path / "d", mapping=mapping)
    assert imported.summary.rows["items"] == 1
    with pytest.raises(ConfigError, match="no category 'Toys', only Office, Tools"):
        mapping = parse_mapping({"categories": ["Toys"]})
        import_dataset("amazon", source, tmp_path / "e", mapping=mapping)


def test_other_folders_and_files_are_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no amazon_<Category>"):
        import_dataset("amazon", tmp_path / "empty", tmp_path / "d")
    write_category(source, "Office", [1], [])
    with pytest.raises(DataError, match="one object"):
        import_dataset("amazon", source, tmp_path / "d")
    (source / "amazon_Office_items.json.gz").write_bytes(gzip.compress(b"{"))
    with pytest.raises(DataError, match="not valid JSON"):
        import_dataset("amazon", source, tmp_path / "d")


@pytest.mark.parametrize(
    ("title", "brand", "queries"),
    [
        (
            "Stanley TRA708T 1/2-Inch Leg Length Staples, Steel",
            "Stanley",
            [
                "leg length staples",
                "length staples",
                "tra708t leg length staples",
                "tra708t staples",
                "stanley length staples",
                "stanley staples",
                "stanley leg length staples",
            ],
        ),
        ("Laminating Pouches for 3M Machines", None, ["laminating pouches"]),
        ("3M Cards 5 x 7", "3M", ["cards", "3m cards"]),
        ("5 x 7", None, ["5 x 7", "x 7", "5 7"]),
    ],
)
def test_derived_queries_come_from_the_head_of_the_title(
    title: str, brand: str | None, queries: list[str]
) -> None:
    assert derive_queries(title, brand) == queries


@pytest.mark.shared_data
def test_the_real_folder(shared_data: Path, tmp_path: Path) -> None:
    imported = import_dataset("amazon", shared_data / "amazon", tmp_path / "d")
    assert imported.summary.rows == {"items": 7145, "users": 0, "judgments": 0, "events": 45190}
    assert imported.summary.rejected == {}
    dataset = Dataset.open(tmp_path / "d")
    events = dataset.events.to_pylist()
    marks = Counter(event["split"] for event in events)
    assert marks == {"train": 26393, "validation": 9398, "test": 9399}
    split_of = dataset.split_of()
    asked = Counter(event["split"] for event in events if event["query"])
    assert all(split_of[e["query"]] == e["split"] for e in events if e["query"])
    # The share of purchases that have a query on their own side.
    assert asked["train"] / marks["train"] > 0.9
    assert asked["test"] / marks["test"] > 0.6
    assert not any("&amp;" in title for title in dataset.items.column("title").to_pylist())
