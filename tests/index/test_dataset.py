"""The dataset directory: what is written is what is read, and damage is named."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index import artifact
from index.dataset import ITEMS, TABLES, Dataset, write_dataset
from index.errors import ArtifactError, DataError

ITEM_ROWS = [
    {
        "item_id": "1",
        "title": "Steel pipe",
        "color": ["grey"],
        "attributes": {"size": ["s", "m"]},
        "price": 2.5,
        "stock": 3,
    },
    {"item_id": "2", "title": "Brass pipe"},
]
JUDGMENT_ROWS = [
    {"query": "pipe", "item_id": "1", "grade": 3.0},
    {"query": "hose", "item_id": "2", "grade": 1.0},
]


def event(query: str | None, split: str | None = None) -> dict[str, object]:
    return {
        "session_id": "s",
        "query": query,
        "item_id": "1",
        "kind": "click",
        "time": 1.0,
        "split": split,
    }


def small(path: Path) -> Dataset:
    return write_dataset(
        path,
        items=ITEM_ROWS,
        judgments=JUDGMENT_ROWS,
        events=[
            event("pipe"),
            event("hose"),
            event(None),
            event("pipe", "test"),
            event(None, "test"),
        ],
        splits={"pipe": "train", "hose": "validation"},
        source="test",
        simulated=True,
        click_model="position",
    )


def test_rows_come_back(tmp_path: Path) -> None:
    dataset = small(tmp_path / "d")
    rows = dataset.items.to_pylist()
    assert rows[0]["attributes"] == [("size", ["s", "m"])]
    assert rows[0]["stock"] == 3
    assert rows[1]["price"] is None
    assert dataset.judgments.to_pylist() == JUDGMENT_ROWS
    assert dataset.users.num_rows == 0
    for name, schema in TABLES.items():
        assert dataset.table(name).schema.names == schema.names
    assert dataset.simulated
    assert not dataset.queries_derived
    assert dataset.manifest["source"] == "test"
    assert dataset.manifest["click_model"] == "position"


def test_tables_are_read_once(tmp_path: Path) -> None:
    dataset = small(tmp_path / "d")
    assert dataset.items is dataset.items


def test_splits_select_queries_judgments_and_events(tmp_path: Path) -> None:
    dataset = small(tmp_path / "d")
    assert dataset.split_of() == {"pipe": "train", "hose": "validation"}
    assert dataset.queries("train") == ["pipe"]
    assert dataset.queries("test") == []
    assert dataset.judgments_of("validation").to_pylist() == JUDGMENT_ROWS[1:]
    queries = {
        split: dataset.events_of(split).column("query").to_pylist()
        for split in ("train", "validation", "test")
    }
    assert queries == {"train": ["pipe", None], "validation": ["hose"], "test": [None]}
    with pytest.raises(DataError, match="unknown split 'dev'"):
        dataset.queries("dev")


def test_queries_get_splits_unless_given(tmp_path: Path) -> None:
    dataset = write_dataset(
        tmp_path / "d", items=ITEM_ROWS, judgments=JUDGMENT_ROWS, events=[event("tap")]
    )
    assert sorted(dataset.split_of()) == ["hose", "pipe", "tap"]


def test_batches_stream_a_table(tmp_path: Path) -> None:
    dataset = small(tmp_path / "d")
    batches = list(dataset.batches("items", 1, ["item_id"]))
    assert [batch.to_pylist() for batch in batches] == [[{"item_id": "1"}], [{"item_id": "2"}]]


def test_same_rows_give_the_same_version(tmp_path: Path) -> None:
    assert small(tmp_path / "a").version == small(tmp_path / "b").version


def test_a_missing_required_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="title"):
        write_dataset(tmp_path / "d", items=[{"item_id": "1", "title": None}])
    with pytest.raises(DataError, match="rows do not fit"):
        write_dataset(tmp_path / "d", items=[{"item_id": "1", "title": "x", "price": "cheap"}])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not there"):
        Dataset.open(tmp_path / "none")
    small(tmp_path / "d")
    (tmp_path / "d" / "users.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"users\.parquet is missing"):
        Dataset.open(tmp_path / "d")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    with artifact.create(tmp_path / "d", "dataset") as draft:
        for name, schema in TABLES.items():
            wrong = pa.schema([("id", pa.int64())]) if name == "items" else schema
            pq.write_table(wrong.empty_table(), draft.path / f"{name}.parquet")
    dataset = Dataset.open(tmp_path / "d")
    with pytest.raises(ArtifactError, match="columns"):
        _ = dataset.items
    with pytest.raises(ArtifactError, match="columns"):
        next(dataset.batches("items"))
    assert ITEMS.names[0] == "item_id"


def test_a_directory_without_a_table_is_refused(tmp_path: Path) -> None:
    with artifact.create(tmp_path / "d", "dataset") as draft:
        (draft.path / "items.parquet").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"judgments\.parquet"):
        Dataset.open(tmp_path / "d")
