"""One at a time: on a real Redis, with leases that end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from server.redis.connection import RedisConnection
from server.redis.keys import Keys
from server.sidecar.lease import Lease, LeaseHeld, LeaseLost


def test_the_second_is_refused_and_told_who_works(
    empty_redis: Any, on_redis: Callable[..., Any]
) -> None:
    async def work(redis: RedisConnection) -> None:
        first, second = (Lease(redis, Keys(), 30.0) for _ in range(2))
        async with first.holding():
            first.check()
            with pytest.raises(LeaseHeld, match=r"at work on .*, process \d+"):
                await second.take()
            with pytest.raises(LeaseLost):
                second.check()
        with pytest.raises(LeaseLost):
            first.check()
        await second.take()
        second.check()

    on_redis(work)


def test_it_is_renewed_while_its_holder_works(
    empty_redis: Any, on_redis: Callable[..., Any]
) -> None:
    async def work(redis: RedisConnection) -> None:
        lease = Lease(redis, Keys(), 1.0)
        async with lease.holding():
            key = Keys().sidecar
            for _ in range(3):
                await redis.command("PEXPIRE", key, 900)
                async with asyncio.timeout(30):
                    while await redis.command("PTTL", key) <= 900:  # noqa: ASYNC110  Redis tells nobody
                        await asyncio.sleep(0.02)
            lease.check()

    on_redis(work)


def test_who_lost_it_hears_so_and_takes_nothing_away(
    empty_redis: Any, on_redis: Callable[..., Any]
) -> None:
    async def work(redis: RedisConnection) -> None:
        lease = Lease(redis, Keys(), 0.6)
        async with lease.holding():
            await redis.command("SET", Keys().sidecar, "elsewhere/1/other")
            async with asyncio.timeout(30):
                while lease.held:  # noqa: ASYNC110  the lease ends by a clock
                    await asyncio.sleep(0.02)
            with pytest.raises(LeaseLost):
                lease.check()
        assert await redis.command("GET", Keys().sidecar) == b"elsewhere/1/other"

    on_redis(work)
