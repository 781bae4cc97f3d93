"""The streams in a real Redis and a real Valkey."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from server.events.log import forget, is_kept, pages_after
from server.events.records import START, Entry, Event, Log
from server.experiment.records import Exposure
from server.redis.connection import RedisUnavailable
from server.redis.keys import SEEN_TTL_S


def event(number: int, kind: str = "click", user: str | None = "u1", time: float = 1.0) -> Event:
    return Event(f"e{number}", kind, "r1", f"i{number}", user, time)


def exposure(number: int, user: str = "u1") -> Exposure:
    return Exposure("", "champion", f"user:{user}", f"r{number}", 1.0, ("i1",))


async def rows(parts: Any, log: Log, after: Entry = START) -> list[dict[str, Any]]:
    pages = [page async for page in pages_after(parts.redis, parts.keys, log, after, 2)]
    return [row for page in pages for row in page.rows.to_pylist()]


def test_an_event_is_taken_once(with_log: Callable[..., Any]):
    async def work(parts: Any) -> None:
        assert await parts.log.take([event(1), event(2), event(1)]) == [True, True, False]
        assert await parts.log.take([event(2), event(3)]) == [False, True]
        found = await rows(parts, Log.EVENTS)
        assert [row["event_id"] for row in found] == ["e1", "e2", "e3"]
        after = await rows(parts, Log.EVENTS, Entry.of(found[0]["entry"]))
        assert [row["event_id"] for row in after] == ["e2", "e3"]
        left = await parts.redis.command("TTL", parts.keys.seen("e1"))
        assert 0 < left <= SEEN_TTL_S

    with_log(work)


def test_ten_clients_that_send_the_same_events_send_them_once(with_log: Callable[..., Any]):
    async def work(parts: Any) -> None:
        batches = [[event(number) for number in range(first, first + 20)] for first in range(10)]
        taken = await asyncio.gather(*(parts.log.take(batch) for batch in batches * 3))
        assert sum(map(sum, taken)) == 29
        found = await rows(parts, Log.EVENTS)
        assert len({row["event_id"] for row in found}) == len(found) == 29

    with_log(work)


def test_recent_items_are_the_newest_by_time_each_once(with_log: Callable[..., Any]):
    async def work(parts: Any) -> None:
        late, early = event(1, time=50.0), event(2, time=10.0)
        await parts.log.take([late, early, event(3, "impression", time=60.0)])
        await parts.log.take(
            [event(4, "order", time=40.0), event(5, time=5.0), event(6, user=None)]
        )
        key = parts.keys.recent("u1")
        found = [item.decode() for item in await parts.redis.command("ZRANGE", key, 0, -1)]
        # Three are kept. An impression is no sign of interest.
        assert found == ["i2", "i4", "i1"]
        again = Event("e9", "click", "r2", "i2", "u1", 70.0)
        await parts.log.take([again])
        found = [item.decode() for item in await parts.redis.command("ZRANGE", key, 0, -1)]
        assert found == ["i4", "i1", "i2"]
        assert await parts.redis.command("TTL", key) > 0

    with_log(work)


def test_a_full_memory_takes_nothing_at_all(with_log: Callable[..., Any]):
    async def work(parts: Any) -> None:
        await parts.log.take([event(1)])
        await parts.redis.command("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(RedisUnavailable):
                await parts.log.take([event(2), event(3)])
            with pytest.raises(RedisUnavailable):
                await parts.log.write([exposure(1)], "b")
        finally:
            await parts.redis.command("CONFIG", "SET", "maxmemory", "512mb")
        assert [row["event_id"] for row in await rows(parts, Log.EVENTS)] == ["e1"]
        assert await parts.log.take([event(2), event(3)]) == [True, True]
        await parts.log.write([exposure(1)], "b")
        assert len(await rows(parts, Log.EXPOSURES)) == 1

    with_log(work)


def test_a_batch_of_exposures_counts_once(with_log: Callable[..., Any]):
    async def work(parts: Any) -> None:
        for batch in ("a", "a", "b", "a"):
            await parts.log.write([exposure(1), exposure(2)], batch)
        assert [row["request_id"] for row in await rows(parts, Log.EXPOSURES)] == ["r1", "r2"] * 2

    with_log(work)


def test_old_entries_fall_out(with_log: Callable[..., Any]):
    async def work(parts: Any) -> None:
        # A node of a stream holds 100 entries: only whole ones are dropped.
        old = [event(number) for number in range(250)]
        await parts.log.take(old)
        first = Entry.of((await rows(parts, Log.EVENTS))[0]["entry"])
        assert await is_kept(parts.redis, parts.keys, Log.EVENTS, first)
        await asyncio.sleep(0.1)
        await parts.log.take([event(1000)])
        assert len(await rows(parts, Log.EVENTS)) < 150
        assert not await is_kept(parts.redis, parts.keys, Log.EVENTS, first)

    with_log(work, retention_s=0.05)


def test_a_user_is_forgotten(with_log: Callable[..., Any]):
    async def work(parts: Any) -> None:
        await parts.log.take([event(1), event(2, user="u2"), event(3), event(4, user=None)])
        await parts.log.write([exposure(1), exposure(2, "u2")], "b")
        assert await forget(parts.redis, parts.keys, "u1") == {Log.EVENTS: 2, Log.EXPOSURES: 1}
        assert [row["event_id"] for row in await rows(parts, Log.EVENTS)] == ["e2", "e4"]
        assert [row["unit"] for row in await rows(parts, Log.EXPOSURES)] == ["user:u2"]
        assert await parts.redis.command("EXISTS", parts.keys.recent("u1")) == 0
        assert await parts.redis.command("EXISTS", parts.keys.recent("u2")) == 1

    with_log(work)
