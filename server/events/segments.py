"""Exported behaviour on disk: a directory of Parquet segments for each of the two logs.

    DIR/exposures/FIRST_LAST.parquet
    DIR/events/FIRST_LAST.parquet

FIRST and LAST are the entries that a segment begins and ends with, with leading zeros, so segments
in the order of their names hold all entries in order, each once. A segment appears whole and is
never changed. What was exported is what is there: LAST of the last segment is where the next export
goes on.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from index import artifact
from index.errors import DataError
from server.events.records import START, Entry, Log

_NAME = re.compile(r"(\d{15}-\d{6,})_(\d{15}-\d{6,})\.parquet\Z")


class Segment(NamedTuple):
    """One file, from its first entry to its last, both included."""

    path: Path
    first: Entry
    last: Entry


class Rows(NamedTuple):
    """Rows of `log.schema`; `last`: read on after it, here or in Redis."""

    rows: pa.Table
    last: Entry


def segments_of(directory: Path, log: Log) -> list[Segment]:
    """The segments of an export, oldest first. Raises DataError when the directory cannot be
    read; one that is not there has none."""
    folder = directory / log
    try:
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=folder) from None
    found = (match for name in names if (match := _NAME.match(name)))
    return sorted(
        (Segment(folder / match[0], Entry.of(match[1]), Entry.of(match[2])) for match in found),
        key=lambda segment: segment.first,
    )


def last_entry(directory: Path, log: Log) -> Entry:
    """Where an export stopped; START where there is none."""
    segments = segments_of(directory, log)
    return segments[-1].last if segments else START


def rows_after(directory: Path, log: Log, after: Entry = START) -> Iterator[Rows]:
    """All rows of an export after an entry, a segment at a time, oldest first.

    Raises DataError when a segment cannot be read.
    """
    for segment in segments_of(directory, log):
        if segment.last <= after:
            continue
        rows = _read(segment.path, log)
        if segment.first <= after:
            later = [Entry.of(text) > after for text in rows.column("entry").to_pylist()]
            rows = rows.filter(pa.array(later, pa.bool_()))
        yield Rows(rows, segment.last)


def write_segment(directory: Path, log: Log, rows: pa.Table, first: Entry, last: Entry) -> Path:
    """Write one segment whole: temporary name, sync, rename. Raises DataError."""
    path = directory / log / f"{first.padded}_{last.padded}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_file(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", path=path) from None
    return path


def _read(path: Path, log: Log) -> pa.Table:
    try:
        return pq.read_table(path, schema=log.schema)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read: {error}", path=path) from None
