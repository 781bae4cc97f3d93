"""The two streams in Redis: events are taken once each, exposures are written in batches.

An append is one script: all of it is done or nothing is. When it has answered, Redis has written it
to its append-only file (the embedded server always has one), so killing any process loses nothing.
Both streams are bounded: by number (`EVENT_ENTRIES`, `EXPOSURE_ENTRIES`) and by age. What falls out
is gone from Redis; `onesearch events export` keeps it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from server.events.records import START, Entry, Event, Log, exposure_to_json, table_of
from server.experiment.assignment import unit_of
from server.experiment.records import Exposure
from server.redis import scripts
from server.redis.connection import Argument, RedisConnection
from server.redis.keys import (
    BATCH_TTL_S,
    EVENT_ENTRIES,
    EXPOSURE_ENTRIES,
    RECENT_TTL_S,
    SEEN_TTL_S,
    Keys,
)

PAGE_ENTRIES = 2_000
_FIELD = b"json"


class Page(NamedTuple):
    """Entries of a stream, oldest first, as rows of `log.schema`; `last`: read on after it."""

    rows: pa.Table
    last: Entry


class BehaviourLog:
    """Appends to both streams. Used on one event loop."""

    def __init__(
        self, redis: RedisConnection, keys: Keys, retention_s: float, recent_items: int
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._retention_ms = round(retention_s * 1000)
        self._recent_items = recent_items

    async def take(self, events: Sequence[Event]) -> list[bool]:
        """For each event whether it is new; those are kept now, and its user's recent items too.

        Raises RedisUnavailable when that is not certain: send the same events again.
        """
        keys: list[str] = [self._keys.events]
        arguments: list[Argument] = [EVENT_ENTRIES, self._retention_ms, SEEN_TTL_S, RECENT_TTL_S]
        arguments.append(self._recent_items)
        for event in events:
            recent = self._keys.recent(event.user_id or "") if event.touches else ""
            keys += (self._keys.seen(event.event_id), recent)
            arguments += (event.to_json(), event.time, event.item_id)
        return [bool(new) for new in await self._redis.script(scripts.TAKE_EVENTS, keys, arguments)]

    async def write(self, exposures: Sequence[Exposure], batch: str) -> None:
        """Write exposures; the same `batch` sent again changes nothing. Raises RedisUnavailable."""
        await self._redis.script(
            scripts.LOG_EXPOSURES,
            [self._keys.exposures, self._keys.batch(batch)],
            [
                *(EXPOSURE_ENTRIES, self._retention_ms, BATCH_TTL_S),
                *(exposure_to_json(one) for one in exposures),
            ],
        )


async def pages_after(
    redis: RedisConnection,
    keys: Keys,
    log: Log,
    after: Entry = START,
    page_entries: int = PAGE_ENTRIES,
) -> AsyncGenerator[Page, None]:
    """What is in a stream after an entry, up to now; ends when there is no more.

    A page's rows may be fewer than its entries: what cannot be read is no row. Raises
    RedisUnavailable.
    """
    while True:
        found: list[tuple[bytes, list[bytes]]] = [
            (one[0], one[1])
            for one in await redis.command(
                "XRANGE", log.key(keys), f"({after}", "+", "COUNT", page_entries
            )
        ]
        if not found:
            return
        entries = [(Entry.of(id.decode()), _payload(fields)) for id, fields in found]
        after = entries[-1][0]
        yield Page(table_of(log, entries), after)
        if len(found) < page_entries:
            return


async def forget(redis: RedisConnection, keys: Keys, user_id: str) -> dict[Log, int]:
    """Delete from Redis what a user did and was shown; how many entries of each log. Exported
    segments are left alone. Raises RedisUnavailable."""
    await redis.command("DEL", keys.recent(user_id))
    deleted: dict[Log, int] = {}
    for log in Log:
        column = "user_id" if log is Log.EVENTS else "unit"
        wanted = user_id if log is Log.EVENTS else unit_of(user_id, "")
        deleted[log] = 0
        async for page in pages_after(redis, keys, log):
            rows = page.rows.filter(pc.field(column) == wanted)
            if rows.num_rows:
                entries = rows.column("entry").to_pylist()
                deleted[log] += await redis.command("XDEL", log.key(keys), *entries)
    return deleted


async def is_kept(redis: RedisConnection, keys: Keys, log: Log, entry: Entry) -> bool:
    """Whether an entry is still in its stream: then nothing after it has fallen out."""
    return bool(await redis.command("XRANGE", log.key(keys), str(entry), str(entry)))


def _payload(fields: dict[bytes, bytes] | list[bytes]) -> bytes:
    if isinstance(fields, dict):
        return fields.get(_FIELD, b"")
    pairs = dict(zip(fields[::2], fields[1::2], strict=True))
    return pairs.get(_FIELD, b"")
