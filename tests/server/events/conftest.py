"""Parts of behaviour over a running Redis of each flavour."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from server.events.log import BehaviourLog
from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer
from server.redis.keys import DAY_S, Keys

RECENT_ITEMS = 3


class Parts(NamedTuple):
    """A connection and what is built on it."""

    redis: RedisConnection
    keys: Keys
    log: BehaviourLog


@pytest.fixture
def with_log(redis_server: EmbeddedServer) -> Callable[..., Any]:
    """`with_log(work)` → what `work(Parts)` returns; on empty data unless `keep`."""

    def run(
        work: Callable[[Parts], Awaitable[Any]], *, keep: bool = False, retention_s: float = DAY_S
    ) -> Any:
        async def go() -> Any:
            redis, keys = RedisConnection(redis_server.url, 5.0), Keys()
            try:
                if not keep:
                    await redis.command("FLUSHALL")
                log = BehaviourLog(redis, keys, retention_s, RECENT_ITEMS)
                return await work(Parts(redis, keys, log))
            finally:
                await redis.close()

        return asyncio.run(go())

    return run
