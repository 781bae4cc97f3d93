"""Generic sources: mapping, rejections with reasons, strictness, determinism, kills, memory."""

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.dataset import Dataset
from index.errors import ArtifactError, ConfigError, DataError
from index.importers.formats import Imported, import_dataset
from index.importers.mapping import parse_mapping

ITEMS = [
    {"item_id": "1", "title": "Steel pipe", "color": ["grey"], "price": 2.5},
    {"item_id": "2", "title": "Brass &amp; <b>copper</b> pipe", "attributes": {"size": "m"}},
]
JUDGMENTS = [{"query": "pipe", "item_id": "1", "grade": 3}]
EVENTS = [
    {"session_id": 9, "user_id": "u", "query": "pipe", "item_id": 1, "kind": "view", "time": 5},
    {"session_id": 9, "user_id": "u", "item_id": "2", "kind": "Purchase", "time": "6"},
]
USERS = [{"user_id": "u", "attributes": {"city": "Rome"}}]


def write_lines(path: Path, rows: Iterable[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def full_source(folder: Path) -> Path:
    folder.mkdir()
    for name, rows in (
        ("items", ITEMS),
        ("judgments", JUDGMENTS),
        ("events", EVENTS),
        ("users", USERS),
    ):
        write_lines(folder / f"{name}.jsonl", rows)
    return folder


def rejected(dataset: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (dataset / "rejected.jsonl").read_text().splitlines()]


def items_of(imported: Imported) -> list[dict[str, Any]]:
    return Dataset.open(imported.path).items.to_pylist()


def test_a_folder_with_all_tables(tmp_path: Path) -> None:
    imported = import_dataset("jsonl", full_source(tmp_path / "s"), tmp_path / "d")
    dataset = Dataset.open(tmp_path / "d")
    assert imported.version == dataset.version
    assert imported.summary.rows == {"items": 2, "users": 1, "judgments": 1, "events": 2}
    assert imported.summary.rejected == {}
    titles = dataset.items.column("title").to_pylist()
    assert titles == ["Steel pipe", "Brass & copper pipe"]
    assert dataset.items.to_pylist()[1]["attributes"] == [("size", ["m"])]
    assert dataset.events.column("kind").to_pylist() == ["impression", "order"]
    assert dataset.events.column("query").to_pylist() == ["pipe", None]
    assert dataset.users.to_pylist() == [{"user_id": "u", "attributes": [("city", "Rome")]}]
    assert dataset.split_of().keys() == {"pipe"}
    assert dataset.manifest["source"] == "jsonl"
    assert dataset.manifest["summary"]["rows"] == imported.summary.rows
    assert not dataset.simulated
    assert rejected(tmp_path / "d") == []


def test_a_folders_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    source = full_source(tmp_path / "s")
    (source / "judgments.jsonl").rename(source / "judgments.csv")
    write_lines(source / "reviews.ndjson", [])
    for name in ("events.json", "mapping.toml", "dataset.json", "README.md"):
        (source / name).write_text("{}")
    imported = import_dataset("jsonl", source, tmp_path / "d")
    assert imported.summary.rows["judgments"] == 0
    [note] = imported.summary.notes
    assert note.startswith("files left out: events.json, judgments.csv, reviews.ndjson; ")
    assert "jsonl reads items, users, judgments, events (.jsonl, " in note


def test_three_formats_give_the_same_items(tmp_path: Path) -> None:
    write_lines(tmp_path / "s.jsonl", [{"item_id": "1", "title": "Pipe", "color": ["a", "b"]}])
    (tmp_path / "s.csv").write_text("item_id,title,color\n1,Pipe,a|b\n")
    pq.write_table(
        pa.table({"item_id": [1], "title": ["Pipe"], "color": [["a", "b"]]}), tmp_path / "s.parquet"
    )
    (tmp_path / "s.csv.gz").write_bytes(gzip.compress((tmp_path / "s.csv").read_bytes()))
    found = [
        items_of(import_dataset(kind, tmp_path / f"s.{suffix}", tmp_path / suffix))
        for kind, suffix in (
            ("jsonl", "jsonl"),
            ("csv", "csv"),
            ("parquet", "parquet"),
            ("csv", "csv.gz"),
        )
    ]
    assert found[0][0]["color"] == ["a", "b"]
    assert all(items == found[0] for items in found)


def test_mapping_names_columns_separators_and_attributes(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("sku;name;path;cost;len\nA;Pipe;Home > Pipes;$3;2 m\n")
    mapping = parse_mapping(
        {
            "delimiter": ";",
            "items": {
                "item_id": "sku",
                "title": "name",
                "category": "path",
                "price": "cost",
                "separators": {"category": ">"},
                "attributes": {"length": "len"},
            },
        }
    )
    imported = import_dataset("csv", tmp_path / "s.csv", tmp_path / "d", mapping=mapping)
    (item,) = items_of(imported)
    assert item["category"] == ["Home", "Pipes"]
    assert item["attributes"] == [("length", ["2 m"])]
    assert item["price"] == 3.0
    assert imported.summary.notes == []


def test_bad_rows_are_rejected_with_place_and_reason(tmp_path: Path) -> None:
    source = full_source(tmp_path / "s")
    lines = [
        b'{"item_id": "1", "title": "Pipe"}',
        b'{"item_id": "1", "title": "Pipe again"}',
        b'{"item_id": "3", "title": ""}',
        b'{"item_id": "4"}',
        b'{"title": "No id"}',
        b'{"item_id": "' + b"x" * 201 + b'", "title": "Pipe"}',
        b'{"item_id": "7", "title": "caf\xe9"}',
        b'{"item_id": "8", "title": ',
        b'["item_id"]',
        b'{"item_id": "a\\u0000b", "title": "Pipe"}',
        b'{"item_id": "2", "title": "' + b"y" * 1200 + b'", "price": -1}',
    ]
    (source / "items.jsonl").write_bytes(b"\n".join(lines))
    write_lines(
        source / "judgments.jsonl",
        [
            *JUDGMENTS,
            *JUDGMENTS,
            {"query": "pipe", "item_id": "99", "grade": 1},
            {"query": " ", "item_id": "1", "grade": 1},
            {"query": "q" * 501, "item_id": "1", "grade": 1},
            {"query": "hose", "item_id": "1", "grade": "NaN"},
        ],
    )
    write_lines(
        source / "events.jsonl",
        [
            EVENTS[0] | {"item_id": "404"},
            EVENTS[0] | {"kind": "hover"},
            EVENTS[0] | {"time": None},
            EVENTS[0] | {"split": "later"},
            EVENTS[0] | {"position": 0},
        ],
    )
    write_lines(source / "users.jsonl", [*USERS, *USERS])
    imported = import_dataset("jsonl", source, tmp_path / "d")
    assert imported.summary.rejected == {
        "items": {
            "invalid UTF-8": 1,
            "item_id: control characters": 1,
            "item_id: duplicate": 1,
            "item_id: missing": 1,
            "item_id: too long": 1,
            "malformed JSON": 1,
            "not an object": 1,
            "title: empty": 1,
            "title: missing": 1,
        },
        "judgments": {
            "grade: not finite": 1,
            "item_id: unknown item": 1,
            "query: duplicate": 1,
            "query: empty": 1,
            "query: too long": 1,
        },
        "events": {
            "item_id: unknown item": 1,
            "kind: unknown kind": 1,
            "split: unknown split": 1,
            "time: missing": 1,
        },
        "users": {"user_id: duplicate": 1},
    }
    assert imported.summary.warnings == {
        "events": {"position: not a count, dropped": 1},
        "items": {"price: negative, dropped": 1, "title: too long, cut": 1},
    }
    log = rejected(tmp_path / "d")
    assert len(log) == 19
    assert log[0] == {
        "table": "items",
        "path": "items.jsonl",
        "line": 2,
        "field": "item_id",
        "reason": "duplicate",
        "value": "1",
    }
    items = Dataset.open(tmp_path / "d").items
    assert items.column("item_id").to_pylist() == ["1", "2"]
    assert len(items.column("title").to_pylist()[1]) == 1000
    assert items.column("price").to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"item_id": "1", "title": " "}', "row 2, field 'title': empty"),
        ('{"item_id": "0", "title": "x"}', "row 2, field 'item_id': duplicate"),
        ("{", "row 2: malformed JSON"),
    ],
)
def test_strict_stops_at_the_first_bad_row(tmp_path: Path, line: str, message: str) -> None:
    source = tmp_path / "s.jsonl"
    source.write_text('{"item_id": "0", "title": "x"}\n' + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        import_dataset("jsonl", source, tmp_path / "d", strict=True)
    assert (caught.value.path, caught.value.row) == (source, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]


def test_wrong_column_counts_in_csv(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("item_id,title\n1,Pipe\n2\n3,a,b\n")
    imported = import_dataset("csv", tmp_path / "s.csv", tmp_path / "d")
    assert imported.summary.rejected == {"items": {"wrong number of columns": 2}}
    assert [row["line"] for row in rejected(tmp_path / "d")] == [3, 4]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_missing_required_column_names_the_available(tmp_path: Path, kind: str) -> None:
    source = tmp_path / f"s.{kind}"
    match kind:
        case "jsonl":
            write_lines(source, [{"sku": 1, "title": "x"}])
        case "csv":
            source.write_text("sku,title\n1,x\n")
        case _:
            pq.write_table(pa.table({"sku": [1], "title": ["x"]}), source)
    with pytest.raises(ConfigError, match=r"'item_id'.*available columns: sku, title"):
        import_dataset(kind, source, tmp_path / "d")
    mapping = parse_mapping({"items": {"item_id": "sku"}})
    assert import_dataset(kind, source, tmp_path / "d", mapping=mapping).summary.rows["items"] == 1


def test_a_mapped_column_must_be_in_the_header(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("item_id,title\n1,x\n")
    mapping = parse_mapping({"items": {"price": "cost"}})
    with pytest.raises(ConfigError, match="'cost' for items field 'price'"):
        import_dataset("csv", tmp_path / "s.csv", tmp_path / "d", mapping=mapping)


def test_unused_columns_are_noted(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("item_id,title,weight\n1,x,2\n")
    imported = import_dataset("csv", tmp_path / "s.csv", tmp_path / "d")
    assert imported.summary.notes == ["s.csv: columns not used: weight"]


def test_sources_that_cannot_work_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        import_dataset("csv", tmp_path / "none.csv", tmp_path / "d")
    with pytest.raises(ConfigError, match="unknown format 'xml'; known are homedepot"):
        import_dataset("xml", tmp_path, tmp_path / "d")
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "products.csv").write_text("item_id,title\n")
    with pytest.raises(ConfigError, match=r"no items file .*holds products\.csv"):
        import_dataset("csv", folder, tmp_path / "d")
    (folder / "items.csv").write_text("item_id,title\n")
    with pytest.raises(DataError, match="no item could be imported"):
        import_dataset("csv", folder, tmp_path / "d")
    (folder / "items.tsv").write_text("item_id\ttitle\n")
    with pytest.raises(ConfigError, match=r"items\.csv and items\.tsv"):
        import_dataset("csv", folder, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_an_import_can_be_repeated(tmp_path: Path) -> None:
    source = full_source(tmp_path / "s")
    first = import_dataset("jsonl", source, tmp_path / "d")
    with pytest.raises(ArtifactError, match="already exists"):
        import_dataset("jsonl", source, tmp_path / "d")
    again = import_dataset("jsonl", source, tmp_path / "d", overwrite=True)
    other = import_dataset("jsonl", source, tmp_path / "e")
    assert first.version == again.version == other.version


def test_overwrite_replaces_datasets_only(tmp_path: Path) -> None:
    source = full_source(tmp_path / "s")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(ArtifactError, match=r"no manifest"):
        import_dataset("jsonl", source, tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letter").exists()


def test_a_killed_import_publishes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "s.jsonl"
    os.mkfifo(source)
    command = (
        "import sys; from pathlib import Path\n"
        "from index.importers.formats import import_dataset\n"
        "import_dataset('jsonl', Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    target = tmp_path / "d"
    child = subprocess.Popen([sys.executable, "-c", command, str(source), str(target)])
    with source.open("w") as pipe:
        for number in range(20_000):
            pipe.write(json.dumps({"item_id": number, "title": f"Pipe {number}"}) + "\n")
        pipe.flush()
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".d.tmp-*/items.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert list(tmp_path.glob(".d.tmp-*")), "the import was under way"
    assert not target.exists()
    with pytest.raises(ArtifactError, match="is not there"):
        Dataset.open(target)
    source.unlink()
    write_lines(source, ITEMS)
    assert import_dataset("jsonl", source, target).summary.rows["items"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "s.jsonl"]


def peak_megabytes(source: Path, target: Path) -> float:
    command = (
        "import resource, sys; from pathlib import Path\n"
        "from index.importers.formats import import_dataset\n"
        "import_dataset('csv', Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    arguments = [sys.executable, "-c", command, str(source), str(target)]
    return float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks: list[float] = []
    sizes: list[float] = []
    for rows in (20_000, 80_000):
        path = tmp_path / f"{rows}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["item_id", "title", "description"])
            text = "some long text " * 60
            writer.writerows([n, f"Pipe {n}", f"{n} {text}"] for n in range(rows))
        sizes.append(path.stat().st_size / 2**20)
        peaks.append(peak_megabytes(path, tmp_path / f"d{rows}"))
    assert sizes[1] - sizes[0] > 50
    assert peaks[1] - peaks[0] < 25


@pytest.mark.parametrize(
    ("field", "stated"),
    [
        *(("relevant_from", value) for value in ('"high"', "true", "[1]", "NaN", "1e999", "null")),
        ("relevant_from", "1" + "0" * 400),
        *(("simulated", value) for value in ('"false"', "0", "null")),
        *(("source", value) for value in ("1", '""', "null")),
    ],
)
def test_stated_facts_must_be_of_their_type(tmp_path: Path, field: str, stated: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "items.jsonl").write_text('{"item_id": "1", "title": "desk"}\n')
    (source / "dataset.json").write_text(f'{{"{field}": {stated}}}')
    with pytest.raises(DataError, match=rf"dataset\.json, field '{field}': must be"):
        import_dataset("jsonl", source, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


def test_a_stray_quote_in_a_csv_is_reported_and_swallows_nothing(tmp_path: Path) -> None:
    source = tmp_path / "items.csv"
    source.write_text('item_id,price,title\n1,1,a\n2,2,"stray\n3,3,item 3\n4,4,item 4\n')
    imported = import_dataset("csv", source, tmp_path / "dataset")
    assert [item["item_id"] for item in items_of(imported)] == ["1", "3", "4"]
    (line,) = rejected(imported.path)
    assert (line["line"], line["reason"], line["value"]) == (3, "unclosed quote", '2,2,"stray')
    with pytest.raises(DataError, match=r"items\.csv, row 3: unclosed quote"):
        import_dataset("csv", source, tmp_path / "other", strict=True)


def test_an_endless_csv_cell_is_cut(tmp_path: Path) -> None:
    source = tmp_path / "items.csv"
    source.write_text(f"item_id,title,description\n1,desk,{'x' * 200_000}\n")
    imported = import_dataset("csv", source, tmp_path / "dataset")
    assert imported.summary.warnings == {"items": {"description: too long, cut": 1}}


def test_parquet_columns_that_nothing_maps_are_not_read(tmp_path: Path) -> None:
    source = tmp_path / "items.parquet"
    columns = {"sku": ["1"], "title": ["desk"], "made": pa.array([1], pa.timestamp("ns"))}
    pq.write_table(pa.table(columns), source)
    mapping = parse_mapping({"items": {"item_id": "sku"}})
    imported = import_dataset("parquet", source, tmp_path / "dataset", mapping=mapping)
    assert [item["item_id"] for item in items_of(imported)] == ["1"]
    assert imported.summary.notes == ["items.parquet: columns not used: made"]
