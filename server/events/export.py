"""From Redis to Parquet segments: each entry exactly once, whenever an export is killed.

What is exported is read off the segments' names (`server.events.segments`), and a segment appears
with one rename: so an export that was killed goes on after the last whole segment. One export at a
time writes to a directory. Entries that Redis dropped before an export came cannot be exported;
`Exported.gap` says that this may have happened.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from index.errors import ConfigError
from server.events.log import Page, is_kept, pages_after
from server.events.records import START, Entry, Log
from server.events.segments import last_entry, write_segment
from server.redis.connection import RedisConnection
from server.redis.keys import Keys

SEGMENT_ROWS = 50_000
_LOCK = ".lock"


@dataclass(slots=True)
class Exported:
    """What one run wrote of one log. `gap`: the entry that was exported last before, where entries
    after it may have been dropped since."""

    rows: int = 0
    files: list[Path] = field(default_factory=list[Path])
    gap: Entry | None = None


@contextmanager
def exporting(directory: Path) -> Generator[None, None, None]:
    """Holds the directory for one export. Raises ConfigError when another one has it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another export writes to {directory}") from None
        yield
    finally:
        os.close(lock)


async def export(
    redis: RedisConnection,
    keys: Keys,
    directory: Path,
    log: Log,
    since: Entry = START,
    segment_rows: int = SEGMENT_ROWS,
) -> Exported:
    """Write what is new in a log; with `since` nothing from before it. Within `exporting`.

    Raises RedisUnavailable, DataError; what was written by then stays and is not written again.
    """
    done = Exported()
    reached = last_entry(directory, log)
    if reached > START and not await is_kept(redis, keys, log, reached):
        done.gap = reached
    tables, first, last = list[pa.Table](), None, None
    async for page in pages_after(redis, keys, log, max(reached, since)):
        first = first or _first_of(page)
        tables.append(page.rows)
        last = page.last
        if sum(table.num_rows for table in tables) >= segment_rows:
            _write(done, directory, log, tables, first, last)
            tables, first = [], None
    if tables:
        _write(done, directory, log, tables, first, last)
    return done


def _write(
    done: Exported,
    directory: Path,
    log: Log,
    tables: list[pa.Table],
    first: Entry | None,
    last: Entry | None,
) -> None:
    rows = pa.concat_tables(tables)
    if first is None or last is None or not rows.num_rows:
        return
    done.files.append(write_segment(directory, log, rows, first, last))
    done.rows += rows.num_rows


def _first_of(page: Page) -> Entry | None:
    return Entry.of(page.rows.column("entry")[0].as_py()) if page.rows.num_rows else None
