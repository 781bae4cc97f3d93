"""Warming up: the head of a query log enters the queue before its searches come.

Queries are normalised and counted; the most frequent enter first. The queue's bound holds: when it
is full, warming up waits for room or stops there, as the caller says.
"""

from __future__ import annotations

import asyncio
import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from index.errors import DataError
from index.text import normalise
from server.keywords.jobs import Priority, job_id
from server.keywords.keywords import MAX_QUERY_LENGTH, KeywordRequest
from server.keywords.queue import ENTRIES, Entry, KeywordQueue

BATCH = 500
LOOK_S = 0.25
DEFAULT_COLUMN = "query"


@dataclass(frozen=True, slots=True)
class Head:
    """Queries of a log in normal form, most frequent first. `rows`: read; `empty`: without text;
    `too_long`: distinct ones that are left out."""

    queries: tuple[str, ...]
    rows: int
    empty: int
    too_long: int


@dataclass(frozen=True, slots=True)
class WarmProgress:
    """`entered`: queries handed in so far, by what became of them; `unfinished`: of our jobs."""

    queries: int
    entered: dict[Entry, int]
    unfinished: int

    @property
    def offered(self) -> int:
        return sum(self.entered.values())


def read_head(path: Path, column: str = DEFAULT_COLUMN, most: int | None = None) -> Head:
    """The queries of a text file (one a line), a CSV or a Parquet file, at most `most` of them.

    Raises DataError when the file cannot be read or has no such column.
    """
    counts: Counter[str] = Counter()
    rows = empty = 0
    for text in _texts(path, column):
        rows += 1
        query = normalise(text)
        if query:
            counts[query] += 1
        else:
            empty += 1
    fitting = [query for query, _ in counts.most_common() if len(query) <= MAX_QUERY_LENGTH]
    return Head(tuple(fitting[:most]), rows, empty, len(counts) - len(fitting))


async def warm(
    queue: KeywordQueue,
    queries: Sequence[str],
    version: str | None,
    *,
    wait_for_room: bool,
    wait_for_answers: bool,
    show: Callable[[WarmProgress], None],
) -> WarmProgress:
    """Let the queries in. Waits for room in a full queue, or else stops at the first that gets
    none; waits until the jobs are done, ours and those that were there before.

    Raises RedisUnavailable.
    """
    entered: dict[Entry, int] = dict.fromkeys(ENTRIES, 0)
    ours: list[str] = []
    left = list(queries)
    progress = WarmProgress(len(queries), dict(entered), 0)
    while left:
        part, left = left[:BATCH], left[BATCH:]
        requests = [KeywordRequest(query) for query in part]
        answers = await queue.enter(requests, Priority.WARM, version)
        refused = [query for query, answer in zip(part, answers, strict=True) if answer == "full"]
        ours += [
            job_id(query, None)
            for query, answer in zip(part, answers, strict=True)
            if answer in ("queued", "duplicate")
        ]
        for answer in answers:
            entered[answer] += 1
        if refused and wait_for_room:
            entered["full"] -= len(refused)
            left = refused + left
            await asyncio.sleep(LOOK_S)
        elif refused:
            entered["full"] += len(left)
            left = []
        progress = WarmProgress(len(queries), dict(entered), len(ours))
        show(progress)
    while wait_for_answers and ours:
        ours = await queue.unfinished(ours)
        progress = WarmProgress(len(queries), dict(entered), len(ours))
        show(progress)
        if ours:
            await asyncio.sleep(LOOK_S)
    return progress


def _texts(path: Path, column: str) -> Iterator[str]:
    suffix = path.suffix.lower()
    try:
        if suffix in (".parquet", ".pq"):
            yield from _parquet_texts(path, column)
        elif suffix in (".csv", ".tsv"):
            yield from _csv_texts(path, column, "\t" if suffix == ".tsv" else ",")
        else:
            with path.open(encoding="utf-8-sig", errors="replace") as lines:
                yield from lines
    except FileNotFoundError:
        raise DataError("there is no such file", path=path) from None
    except (OSError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"cannot be read: {error}", path=path) from None


def _parquet_texts(path: Path, column: str) -> Iterator[str]:
    with pq.ParquetFile(path) as file:
        _check_column(path, column, file.schema_arrow.names)
        for batch in file.iter_batches(columns=[column]):
            yield from ("" if text is None else str(text) for text in batch.column(0).to_pylist())


def _csv_texts(path: Path, column: str, delimiter: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        table = csv.DictReader(lines, delimiter=delimiter)
        _check_column(path, column, table.fieldnames or ())
        yield from (row[column] or "" for row in table)


def _check_column(path: Path, column: str, names: Sequence[str]) -> None:
    if column not in names:
        known = ", ".join(names) or "none"
        raise DataError(
            f"there is no column {column!r} (there are: {known}); name one with --column", path=path
        )
