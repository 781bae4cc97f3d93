"""User contexts over a Redis that is slow, away and back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.context import ContextRead, InMemoryUserContexts, StoredUserContexts
from server.redis.connection import RedisConnection
from server.redis.keys import Keys


class Counts(Counter[str]):
    def context_read(self, what: ContextRead) -> None:
        self[what] += 1


class SlowRedis(RedisConnection):
    """A real connection whose answers wait for `open`."""

    def __init__(self, url: str) -> None:
        super().__init__(url, 5.0)
        self.open = asyncio.Event()
        self.heard: asyncio.Queue[None] = asyncio.Queue()

    async def command(self, *parts: Any) -> Any:
        await self.open.wait()
        answer = await super().command(*parts)
        # Heard of only when whoever asked has gone on.
        asyncio.get_running_loop().call_later(0.01, self.heard.put_nowait, None)
        return answer


class NoRedis(RedisConnection):
    """A connection to nowhere that counts."""

    asked = 0

    async def command(self, *parts: Any) -> Any:
        self.asked += 1
        return await super().command(*parts)


def contexts_over(redis: RedisConnection, counts: Counts, budget_s: float) -> StoredUserContexts:
    return StoredUserContexts(redis, Keys(), InMemoryUserContexts(10, 3), counts, 10, 3, budget_s)


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # pyright: ignore[reportArgumentType]


def test_memory_keeps_the_newest_of_the_users_seen_last():
    async def work() -> None:
        memory = InMemoryUserContexts(2, 3)
        await memory.remember("a", ["1", "2", "3", "4"])
        await memory.remember("b", ["1"])
        await memory.remember("a", ["5"])
        await memory.remember("c", ["6"])
        assert [list(await memory.history(user)) for user in "abc"] == [["5"], [], ["6"]]

    run(work)


def test_a_late_read_serves_the_next_search(redis_server: Any):
    async def work() -> None:
        redis, counts = SlowRedis(redis_server.url), Counts()
        contexts = contexts_over(redis, counts, 0.02)
        redis.open.set()
        await redis.command("FLUSHALL")
        for score, item in enumerate(("i1", "i2", "i3", "i4")):
            await redis.command("ZADD", Keys().recent("u"), score, item)
        for _ in range(5):
            await redis.heard.get()
        redis.open.clear()
        await contexts.remember("u", ["said"])
        started = time.monotonic()
        assert list(await contexts.history("u")) == ["said"]
        assert time.monotonic() - started < 30
        redis.open.set()
        await redis.heard.get()
        redis.open.clear()
        assert list(await contexts.history("u")) == ["i2", "i3", "i4"]
        contexts.took("u", "i2")
        assert list(await contexts.history("u")) == ["i3", "i4", "i2"]
        contexts.took("other", "i9")
        assert list(await contexts.history("other")) == ["i9"]
        assert counts == {"late": 4}
        await contexts.close()
        await redis.close()

    run(work)


def test_while_redis_is_away_no_search_asks_it():
    async def work() -> None:
        redis, counts, now = NoRedis("unix:///none.sock", 0.5), Counts(), [0.0]
        memory = InMemoryUserContexts(10, 3)
        contexts = StoredUserContexts(
            redis, Keys(), memory, counts, 10, 3, 5.0, clock=lambda: now[0]
        )
        await contexts.remember("u", ["said"])
        for _ in range(3):
            assert list(await contexts.history("u")) == ["said"]
        assert counts == {"unavailable": 3}
        assert redis.asked == 1
        now[0] = 10.0
        await contexts.history("u")
        assert redis.asked == 2
        await redis.close()

    run(work)


@pytest.mark.parametrize("budget_s", [0.0, 5.0])
def test_nobody_is_known_without_events(redis_server: Any, budget_s: float):
    async def work() -> None:
        redis, counts = RedisConnection(redis_server.url, 5.0), Counts()
        contexts = contexts_over(redis, counts, budget_s)
        assert list(await contexts.history("nobody")) == []
        assert counts == {"unknown" if budget_s else "late": 1}
        await contexts.close()
        await redis.close()

    run(work)
