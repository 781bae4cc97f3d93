"""Readers: good rows come through, bad rows are named, unreadable files raise."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.errors import DataError
from index.importers import records
from index.importers.records import BadRow, SourceRow, read_columns, read_rows


def read(path: Path, kind: str, **options: str) -> list[tuple[int, object]]:
    """(line, values or reason) of each row."""
    return [
        (row.place.line, row.values if isinstance(row, SourceRow) else row.reason)
        for row in read_rows(path, kind, **options)
    ]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": 2\n[1]\n{"a": "\xff"}\n{"a": "\\ud800"}\n{"a": 3}'
    )
    assert read(path, "jsonl") == [
        (1, {"a": 1}),
        (3, "malformed JSON"),
        (4, "not an object"),
        (5, "invalid UTF-8"),
        (6, "malformed JSON"),
        (7, {"a": 3}),
    ]
    assert read_columns(path, "jsonl") is None


def test_a_line_over_the_limit_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 500 + '"}\n{"a": 2}\n')
    assert read(path, "jsonl") == [(1, {"a": 1}), (2, "line too long"), (3, {"a": 2})]
    path.write_text("a\n" + "x" * 500 + "\n")
    with pytest.raises(DataError, match="line longer"):
        read(path, "csv")


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'\xef\xbb\xbfid,title\r\n1,"a ""b"", c"\r\n2\r\n3,x,y\r\n\r\n4,\xff\r\n'
        b'5,"two\nlines"\r\n6,\xc3\xa9\r\n'
    )
    assert read(path, "csv") == [
        (2, {"id": "1", "title": 'a "b", c'}),
        (3, "wrong number of columns"),
        (4, "wrong number of columns"),
        (6, "invalid UTF-8"),
        (7, {"id": "5", "title": "two\nlines"}),
        (9, {"id": "6", "title": "é"}),
    ]
    assert read_columns(path, "csv") == ["id", "title"]


def test_an_open_quote_spoils_its_record_only(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    filler = "".join(f"{n},filler\n" for n in range(20_000))
    path.write_text('id,title\n1,"open\n' + filler + "last,row\n")
    rows = read(path, "csv")
    assert rows[0] == (2, "malformed CSV")
    assert rows[-1][1] == {"id": "last", "title": "row"}


def test_delimiters(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\tb\n1\t2\n")
    (tmp_path / "a.csv").write_text("a;b\n1;2\n")
    expected = [(2, {"a": "1", "b": "2"})]
    assert read(tmp_path / "a.tsv", "csv") == expected
    assert read(tmp_path / "a.csv", "csv", delimiter=";") == expected


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = gzip.compress(b'{"a": 1}\n' * 5000)
    path.write_bytes(data)
    assert len(read(path, "jsonl")) == 5000
    path.write_bytes(data[:-20])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be read"):
        read(path, "jsonl")
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read(path, "jsonl")


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "tags": [["x"], None]}), path)
    assert read(path, "parquet") == [(1, {"id": 1, "tags": ["x"]}), (2, {"id": 2, "tags": None})]
    assert read_columns(path, "parquet") == ["id", "tags"]


def test_parquet_with_one_bad_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffc")],
    )
    pq.write_table(pa.table({"a": texts}), path)
    assert read(path, "parquet") == [(1, {"a": "a"}), (2, "invalid UTF-8"), (3, {"a": "c"})]


@pytest.mark.parametrize(("kind", "name"), [("jsonl", "a.jsonl"), ("parquet", "a.parquet")])
def test_a_missing_file_is_named(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: no such file"):
        read(tmp_path / name, kind)


def test_other_encodings_and_formats_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16"):
        read(path, "csv")
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        read_columns(path, "csv")
    with pytest.raises(DataError, match="no readable Parquet"):
        read(path, "parquet")


def test_bad_rows_show_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{oops\n")
    (row,) = read_rows(path, "jsonl")
    assert isinstance(row, BadRow)
    assert row.value == "{oops"
