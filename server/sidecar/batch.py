"""One round's behaviour: read once, from an export and then Redis, and kept beside the round.

Events are read up to a moment that exposures have certainly passed, so a click finds its search.
Clicks may come late: exposures of the time before the batch are its *context*; they match clicks
and are no searches of the batch.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index import artifact
from index.errors import ArtifactError
from server.events.joined import join
from server.events.log import is_kept, pages_after
from server.events.records import START, Entry, Log
from server.events.segments import last_entry, rows_after
from server.experiment.records import CLICK, IMPRESSION, ORDER
from server.redis.connection import RedisConnection
from server.redis.keys import Keys
from server.sidecar.rounds import Cursor

TABLES = ("exposures", "context", "events")


class Bounds(NamedTuple):
    """`searches` at most; `settle_s` before now no event is read; `late_s` of context."""

    searches: int
    settle_s: float
    late_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """`exposures` and `events` of the batch, `context` from before it. `full`: there is more.
    `gaps`: logs of which entries may have been dropped before they were read."""

    exposures: pa.Table
    context: pa.Table
    events: pa.Table
    until: Cursor
    full: bool = False
    gaps: tuple[str, ...] = ()

    @property
    def clicks(self) -> int:
        """Clicks and orders."""
        kinds = self.events.column("kind").to_pylist()
        return kinds.count(CLICK) + kinds.count(ORDER)

    def write(self, directory: Path) -> None:
        """Keep the tables. Raises ArtifactError."""
        for name in TABLES:
            write_table(directory / f"{name}.parquet", getattr(self, name))

    @classmethod
    def read(cls, directory: Path, until: Cursor) -> Batch:
        """As it was written. Raises ArtifactError."""
        exposures, context, events = (read_table(directory / f"{name}.parquet") for name in TABLES)
        return cls(exposures, context, events, until)


@dataclass(frozen=True, slots=True, eq=False)
class BatchRows:
    """A batch joined: `rows` of `index.dataset.EVENTS`, the share of clicks and orders that name
    nothing shown, and whether any of it is made up."""

    rows: pa.Table
    unmatched: float
    simulated: bool


def joined(batch: Batch) -> BatchRows:
    """Searches of the batch with what came of them, and late clicks of searches before it."""
    found = join(pa.concat_tables([batch.context, batch.exposures]), batch.events)
    shown_before = batch.context.column("request_id")
    again = pc.and_(
        pc.equal(found.rows.column("kind"), IMPRESSION),
        pc.is_in(found.rows.column("session_id"), shown_before),
    )
    rows = found.rows.filter(pc.invert(again))
    matched = sum(kind != IMPRESSION for kind in rows.column("kind").to_pylist())
    named = matched + found.unmatched
    return BatchRows(rows, found.unmatched / named if named else 0.0, found.simulated)


async def collect(
    redis: RedisConnection, keys: Keys, directory: Path | None, since: Cursor, bounds: Bounds
) -> Batch:
    """What is new after `since`. Raises RedisUnavailable, DataError."""
    seconds, micros = await redis.command("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    late = Entry(max(0, since.exposures.milliseconds - round(bounds.late_s * 1000)), 0)
    context, exposures = list[pa.Table](), list[pa.Table]()
    last, searches, full = since.exposures, 0, False
    async for rows, _ in _pages(redis, keys, directory, Log.EXPOSURES, late):
        if full:
            break
        new = _after(rows, since.exposures)
        context.append(rows.filter(pc.invert(new)))
        taken = rows.filter(new).slice(0, bounds.searches - searches)
        exposures.append(taken)
        searches += taken.num_rows
        full = searches >= bounds.searches
        if taken.num_rows:
            last = Entry.of(taken.column("entry")[-1].as_py())
    end_ms = last.milliseconds if full else now_ms
    end = Entry(end_ms - round(bounds.settle_s * 1000), 2**62)
    events, reached = list[pa.Table](), since.events
    async for rows, _ in _pages(redis, keys, directory, Log.EVENTS, since.events):
        within = rows.filter(pc.invert(_after(rows, end)))
        events.append(within)
        if within.num_rows:
            reached = Entry.of(within.column("entry")[-1].as_py())
        if within.num_rows < rows.num_rows:
            break
    return Batch(
        _whole(Log.EXPOSURES, exposures),
        _whole(Log.EXPOSURES, context),
        _whole(Log.EVENTS, events),
        Cursor(last, reached),
        full,
        await _gaps(redis, keys, directory, since),
    )


def write_table(path: Path, table: pa.Table) -> None:
    """One Parquet file, whole or not at all. Raises ArtifactError."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_file(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}") from None


def read_table(path: Path) -> pa.Table:
    """Raises ArtifactError."""
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None


async def _pages(
    redis: RedisConnection, keys: Keys, directory: Path | None, log: Log, after: Entry
) -> AsyncGenerator[tuple[pa.Table, Entry], None]:
    """The export, where there is one, and what Redis has behind it."""
    if directory is not None:
        for rows, last in rows_after(directory, log, after):
            yield rows, last
            after = last
    async for page in pages_after(redis, keys, log, after):
        yield page.rows, page.last


async def _gaps(
    redis: RedisConnection, keys: Keys, directory: Path | None, since: Cursor
) -> tuple[str, ...]:
    found: list[str] = []
    for log, entry in zip((Log.EXPOSURES, Log.EVENTS), since, strict=True):
        exported = directory is not None and last_entry(directory, log) >= entry
        if entry > START and not exported and not await is_kept(redis, keys, log, entry):
            found.append(log.value)
    return tuple(found)


def _after(rows: pa.Table, entry: Entry) -> pa.Array:
    later = [Entry.of(text) > entry for text in rows.column("entry").to_pylist()]
    return pa.array(later, pa.bool_())


def _whole(log: Log, tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables) if tables else log.schema.empty_table()
