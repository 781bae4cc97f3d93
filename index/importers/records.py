"""Source files → rows, one at a time, in bounded memory.

JSON lines, CSV (or TSV) and Parquet; the text formats may be gzipped. A row that cannot be read is
a `BadRow` and the reading goes on; a file that cannot be read at all raises DataError.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from index.errors import DataError

MAX_LINE_BYTES = 16 << 20
PARQUET_BATCH_ROWS = 2_048
SUFFIXES = {
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
    "parquet": (".parquet",),
}
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row came from: file and 1-based line (Parquet: row)."""

    path: Path
    line: int


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as the source has it."""

    place: Place
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read."""

    place: Place
    reason: str
    value: str = ""


def read_rows(
    path: Path, kind: str, *, delimiter: str | None = None
) -> Iterator[SourceRow | BadRow]:
    """Rows of a file. `kind` is a key of SUFFIXES; `delimiter` is for CSV (default: by suffix).

    Raises DataError when the file is missing, damaged (a cut gzip stream, no Parquet) or UTF-16.
    """
    match kind:
        case "jsonl":
            yield from _json_rows(path)
        case "csv":
            yield from _csv_rows(path, delimiter or (_default_delimiter(path)))
        case _:
            yield from _parquet_rows(path)


def read_columns(path: Path, kind: str, *, delimiter: str | None = None) -> list[str] | None:
    """Column names that the file declares; None for JSON lines, which declare none."""
    match kind:
        case "jsonl":
            return None
        case "csv":
            with open_bytes(path) as file:
                _, header = next(_records(path, file, delimiter or _default_delimiter(path)))
                if header is None:
                    raise DataError("the header line cannot be read", path=path, row=1)
                return header
        case _:
            with _parquet(path) as file:
                return list(file.schema_arrow.names)


def _json_rows(path: Path) -> Iterator[SourceRow | BadRow]:
    with open_bytes(path) as file:
        for number, line in _lines(file):
            place = Place(path, number)
            if line is None:
                yield BadRow(place, "line too long")
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            yield _json_row(place, line)


def _json_row(place: Place, line: bytes) -> SourceRow | BadRow:
    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError:
        reason = "malformed JSON"
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            reason = "invalid UTF-8"
        return BadRow(place, reason, line[:200].decode("utf-8", "replace").strip())
    if not isinstance(values, dict):
        return BadRow(place, "not an object", line[:200].decode().strip())
    return SourceRow(place, cast(dict[str, Any], values))


def _csv_rows(path: Path, delimiter: str) -> Iterator[SourceRow | BadRow]:
    with open_bytes(path) as file:
        records = _records(path, file, delimiter)
        _, header = next(records)
        for number, cells in records:
            place = Place(path, number)
            if cells is None:
                yield BadRow(place, "malformed CSV")
            elif len(cells) != len(header or ()):
                yield BadRow(place, "wrong number of columns", delimiter.join(cells)[:200])
            elif not all(map(_is_clean, cells)):
                text = delimiter.join(cells).encode("utf-8", "surrogateescape")
                yield BadRow(place, "invalid UTF-8", text[:200].decode("utf-8", "replace"))
            else:
                yield SourceRow(place, dict(zip(header or (), cells, strict=True)))


def _records(path: Path, file: IO[bytes], delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """(line, cells) of each CSV record, header first; None where it cannot be parsed.

    Bytes that are not UTF-8 are kept as surrogates, so that they spoil one record only.
    """
    start = 1

    def text_lines() -> Iterator[str]:
        for number, line in _lines(file):
            if line is None:
                raise DataError(f"line longer than {MAX_LINE_BYTES} bytes", path=path, row=number)
            yield line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")

    reader = csv.reader(text_lines(), delimiter=delimiter)
    empty = True
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error:
            cells = None
        if cells != []:
            empty = False
            yield start, cells
        start = reader.line_num + 1
    if empty:
        raise DataError("the file is empty; a header line was expected", path=path)


def _is_clean(cell: str) -> bool:
    if cell.isascii():
        return True
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parquet_rows(path: Path) -> Iterator[SourceRow | BadRow]:
    with _parquet(path) as file:
        number = 0
        try:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS):
                yield from _batch_rows(path, batch, number)
                number += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot be read: {error}", path=path, row=number + 1) from None


def _batch_rows(path: Path, batch: pa.RecordBatch, before: int) -> Iterator[SourceRow | BadRow]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield BadRow(Place(path, before + 1), "invalid UTF-8")
            return
        for row in range(batch.num_rows):
            yield from _batch_rows(path, batch.slice(row, 1), before + row)
        return
    for row, values in enumerate(rows, before + 1):
        yield SourceRow(Place(path, row), values)


@contextmanager
def _parquet(path: Path) -> Generator[pq.ParquetFile, None, None]:
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"is no readable Parquet file: {error}", path=path) from None
    with file:
        yield file


@contextmanager
def open_bytes(path: Path) -> Generator[IO[bytes], None, None]:
    """The file's bytes, unzipped. Failures of the file system or gzip become DataError."""
    try:
        with path.open("rb") as raw:
            zipped = path.suffix == ".gz"
            with gzip.open(raw) if zipped else raw as stream:
                file = io.BufferedReader(cast(io.RawIOBase, stream)) if zipped else stream
                if cast(io.BufferedReader, file).peek(2)[:2] in _UTF16_MARKS:
                    raise DataError("is UTF-16; save it as UTF-8", path=path)
                yield cast(IO[bytes], file)
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"cannot be read: {error}", path=path) from None


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """(1-based number, line) with None for a line over MAX_LINE_BYTES, which is skipped."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield number, line
            continue
        while rest := file.readline(MAX_LINE_BYTES):
            if rest.endswith(b"\n"):
                break
        yield number, None


def _default_delimiter(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","
