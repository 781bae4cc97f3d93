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
import threading
import zlib
from collections import deque
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from index.errors import DataError

MAX_LINE_BYTES = 16 << 20
# A quoted CSV cell may hold newlines; a record beyond these bounds is taken for a stray quote.
MAX_RECORD_LINES = 64
MAX_RECORD_CHARACTERS = 1 << 20
MAX_SHOWN_CHARACTERS = 200
PARQUET_BATCH_ROWS = 2_048
SUFFIXES = {
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
    "parquet": (".parquet",),
}
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_FIELD_LIMIT_LOCK = threading.Lock()


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
    path: Path,
    kind: str,
    *,
    delimiter: str | None = None,
    columns: Collection[str] | None = None,
) -> Iterator[SourceRow | BadRow]:
    """Rows of a file. `kind` is a key of SUFFIXES; `delimiter` is for CSV (default: by suffix).

    With `columns`, a Parquet file is read no further than these; the text formats give all.
    Raises DataError when the file is missing, damaged (a cut gzip stream, no Parquet) or UTF-16.
    """
    match kind:
        case "jsonl":
            yield from _json_rows(path)
        case "csv":
            yield from _csv_rows(path, delimiter or (_default_delimiter(path)))
        case _:
            yield from _parquet_rows(path, columns)


def read_columns(path: Path, kind: str, *, delimiter: str | None = None) -> list[str] | None:
    """Column names that the file declares; None for JSON lines, which declare none."""
    match kind:
        case "jsonl":
            return None
        case "csv":
            with open_bytes(path) as file:
                records = _records(path, file, delimiter or _default_delimiter(path))
                return _header(path, next(records))
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
        header = _header(path, next(records))
        for record in records:
            if isinstance(record, BadRow):
                yield record
                continue
            number, cells = record
            place = Place(path, number)
            if all(map(_is_clean, cells)):
                yield SourceRow(place, dict(zip(header, cells, strict=True)))
            else:
                yield BadRow(place, "invalid UTF-8", _shown(delimiter.join(cells)))


def _header(path: Path, record: tuple[int, list[str]] | BadRow) -> list[str]:
    if isinstance(record, BadRow):
        message = f"the header line cannot be read: {record.reason}"
        raise DataError(message, path=path, row=record.place.line)
    return record[1]


class _BadRecordError(Exception):
    """The lines at hand make no record; the text is the reason."""


class _RecordLines:
    """Decoded lines for csv.reader, which can be taken back.

    `record` holds (number, text) of the lines handed out since `begin`. csv.reader asks for a
    second line only inside a quoted field, so where none may follow, the quote was never closed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._source = _lines(file)
        self._pending: deque[tuple[int, str | None]] = deque()
        self._characters = 0
        self.record: list[tuple[int, str]] = []

    def begin(self) -> None:
        self._characters = 0
        self.record = []

    def take_back(self) -> None:
        """Hand out all but the first line of the record again."""
        self._pending.extendleft(reversed(self.record[1:]))
        del self.record[1:]

    def __iter__(self) -> _RecordLines:
        return self

    def __next__(self) -> str:
        line = self._pending.popleft() if self._pending else self._read()
        if not self.record:
            if line is None:
                raise StopIteration
            number, text = line
            self.record.append((number, text or ""))
            self._characters = len(text or "")
            if text is None:
                raise _BadRecordError("line too long")
            return text
        if line is None:
            raise _BadRecordError("unclosed quote")
        number, text = line
        self._characters += len(text or "")
        too_long = self._characters > MAX_RECORD_CHARACTERS or len(self.record) >= MAX_RECORD_LINES
        if text is None or too_long:
            self._pending.appendleft(line)
            raise _BadRecordError("unclosed quote")
        self.record.append((number, text))
        return text

    def _read(self) -> tuple[int, str | None] | None:
        number, line = next(self._source, (0, None))
        if line is None:
            return (number, None) if number else None
        # Bytes that are not UTF-8 are kept as surrogates, so that they spoil one record only.
        return number, line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")


def _records(
    path: Path, file: IO[bytes], delimiter: str
) -> Iterator[tuple[int, list[str]] | BadRow]:
    """(line, cells) of each CSV record, header first, all as wide as the header.

    A record of several lines that turns out wrong was most likely opened by a stray quote: it costs
    its first line, and reading goes on at the line after that one.
    """
    lines = _RecordLines(file)
    # Strict, so that a stray quote that meets the opening quote of a later row is an error.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    width = 0
    while True:
        lines.begin()
        reason = ""
        cells: list[str] = []
        try:
            cells = _next_cells(reader)
        except StopIteration:
            break
        except _BadRecordError as error:
            reason = str(error)
        except csv.Error:
            if len(lines.record) > 1:
                reason = "unclosed quote"
            else:
                cells, reason = _lenient_cells(lines.record[0][1], delimiter)
        if not cells and not reason:
            continue
        if width and not reason and len(cells) != width:
            reason = "wrong number of columns"
        start, first_line = lines.record[0]
        if reason:
            lines.take_back()
            yield BadRow(Place(path, start), reason, _shown(first_line))
        else:
            width = width or len(cells)
            yield start, cells
    if not width:
        raise DataError("the file is empty; a header line was expected", path=path)


def _lenient_cells(line: str, delimiter: str) -> tuple[list[str], str]:
    """Cells of one line with text after a closing quote ("5" pipe), or the reason against it."""

    def only() -> Iterator[str]:
        yield line
        raise _BadRecordError("unclosed quote")

    try:
        return _next_cells(csv.reader(only(), delimiter=delimiter)), ""
    except _BadRecordError as error:
        return [], str(error)
    except csv.Error:
        return [], "malformed CSV"


def _next_cells(reader: Iterator[list[str]]) -> list[str]:
    """The next record, whatever the length of its cells.

    The csv module has one limit for the whole process; it is lifted for this call only.
    """
    with _FIELD_LIMIT_LOCK:
        before = csv.field_size_limit(MAX_LINE_BYTES + MAX_RECORD_CHARACTERS)
        try:
            return next(reader)
        finally:
            csv.field_size_limit(before)


def _shown(text: str) -> str:
    shown = text[:MAX_SHOWN_CHARACTERS].encode("utf-8", "surrogateescape")
    return shown.decode("utf-8", "replace").strip()


def _is_clean(cell: str) -> bool:
    if cell.isascii():
        return True
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parquet_rows(path: Path, columns: Collection[str] | None) -> Iterator[SourceRow | BadRow]:
    with _parquet(path) as file:
        wanted = [n for n in file.schema_arrow.names if columns is None or n in columns]
        number = 0
        try:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=wanted):
                yield from _batch_rows(path, batch, number)
                number += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot be read: {error}", path=path, row=number + 1) from None


def _batch_rows(path: Path, batch: pa.RecordBatch, before: int) -> Iterator[SourceRow | BadRow]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        # UTF-8 that is none, and times that Python's types cannot hold.
        if batch.num_rows == 1:
            place = Place(path, before + 1)
            if isinstance(error, UnicodeDecodeError):
                yield BadRow(place, "invalid UTF-8")
            else:
                yield BadRow(place, "unreadable value", _shown(str(error)))
            return
        for row in range(batch.num_rows):
            yield from _batch_rows(path, batch.slice(row, 1), before + row)
        return
    for row, values in enumerate(rows, before + 1):
        yield SourceRow(Place(path, row), values)


@contextmanager
def _parquet(path: Path) -> Generator[pq.ParquetFile, None, None]:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
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
