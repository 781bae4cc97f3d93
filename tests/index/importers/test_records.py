"""Readers: good rows come through, bad rows are named, unreadable files raise."""

import csv
import gzip
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import DataError
from index.importers import records
from index.importers.records import BadRow, Place, SourceRow, read_columns, read_rows


def read(path: Path, kind: str, **options: Any) -> list[tuple[int, object]]:
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
    path.write_text("a\n" + "x" * 500 + '\n2\n"' + "x" * 500 + '\n"3\n4\n')
    assert read(path, "csv") == [
        (2, "line too long"),
        (3, {"a": "2"}),
        (4, "line too long"),
        (5, "unclosed quote"),
        (6, {"a": "4"}),
    ]
    path.write_text("x" * 500 + "\n1\n")
    with pytest.raises(DataError, match="row 1: the header line cannot be read: line too long"):
        read_columns(path, "csv")


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


def test_a_stray_quote_costs_its_own_line_only(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,title\n1,a\n2,"stray\n3,item 3\n4,item 4\n')
    rows = list(read_rows(path, "csv"))
    assert rows[1] == BadRow(Place(path, 3), "unclosed quote", '2,"stray')
    assert [row.values["id"] for row in rows if isinstance(row, SourceRow)] == ["1", "3", "4"]
    filler = "".join(f"{n},filler\n" for n in range(20_000))
    path.write_text('id,title\n1,"open\n' + filler + "last,row\n")
    found = read(path, "csv")
    assert found[0] == (2, "unclosed quote")
    assert found[1:] == [
        *((n + 3, {"id": str(n), "title": "filler"}) for n in range(20_000)),
        (20_003, {"id": "last", "title": "row"}),
    ]


@pytest.mark.parametrize(
    ("next_row", "reason", "title"),
    [
        ('3,"item 3"', "unclosed quote", "item 3"),  # meets the opening quote of a good row
        ('3,"item, 3"', "unclosed quote", "item, 3"),
        ('3,item 3",x', "wrong number of columns", None),
    ],
)
def test_a_stray_quote_that_another_row_closes(
    tmp_path: Path, next_row: str, reason: str, title: str | None
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'id,title\n2,"stray\n{next_row}\n4,item 4\n')
    assert read(path, "csv") == [
        (2, reason),
        (3, {"id": "3", "title": title} if title else "wrong number of columns"),
        (4, {"id": "4", "title": "item 4"}),
    ]


def test_quoted_newlines_up_to_the_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    text = "\n" * (records.MAX_RECORD_LINES - 1)
    path.write_text(f'id,title\n1,"{text}"\n2,b\n')
    assert read(path, "csv") == [
        (2, {"id": "1", "title": text}),
        (2 + records.MAX_RECORD_LINES, {"id": "2", "title": "b"}),
    ]
    path.write_text(f'id,title\n1,"\n{text}"\n2,b\n')
    assert read(path, "csv")[0] == (2, "unclosed quote")
    assert read(path, "csv")[-1][1] == {"id": "2", "title": "b"}
    monkeypatch.setattr(records, "MAX_RECORD_CHARACTERS", 20)
    path.write_text('id,title\n1,"12345678\n1234567890\n2,b\n')
    assert read(path, "csv") == [
        (2, "unclosed quote"),
        (3, "wrong number of columns"),
        (4, {"id": "2", "title": "b"}),
    ]


def test_text_after_a_closing_quote_is_kept_within_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,title\n1,"5" pipe\n2,"5" pipe",x\n"3"x,"open\n4,a\n')
    assert read(path, "csv") == [
        (2, {"id": "1", "title": "5 pipe"}),
        (3, "wrong number of columns"),
        (4, "unclosed quote"),
        (5, {"id": "4", "title": "a"}),
    ]
    path.write_text('id,"title\n1,a\n')
    with pytest.raises(DataError, match="row 1: the header line cannot be read: unclosed quote"):
        read(path, "csv")


@given(
    st.lists(
        st.tuples(st.text('ab",\n', max_size=6), st.text('ab",\n', max_size=6)),
        max_size=8,
    )
)
def test_what_csv_writes_is_read_back(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerows([("x", "y"), *rows])
        assert [values for _, values in read(path, "csv")] == [{"x": x, "y": y} for x, y in rows]


def test_cells_beyond_the_csv_module_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    limit = csv.field_size_limit()
    text = "x" * (limit + 1)
    path.write_text(f"id,title\n1,{text}\n2,b\n")
    assert read(path, "csv") == [(2, {"id": "1", "title": text}), (3, {"id": "2", "title": "b"})]
    assert csv.field_size_limit() == limit


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


def test_parquet_values_that_python_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    days = pa.array([0, 10**9, 2], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"id": [1, 2, 3], "day": days}), path)
    rows = list(read_rows(path, "parquet"))
    assert [row.reason for row in rows if isinstance(row, BadRow)] == ["unreadable value"]
    assert rows[1].place.line == 2
    assert read(path, "parquet", columns=["id"]) == [(n, {"id": n}) for n in (1, 2, 3)]


def test_a_damaged_parquet_page_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"id": list(range(1_000))})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[2_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet, row 1: cannot be read"):
        read(path, "parquet")


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
