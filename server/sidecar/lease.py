"""One sidecar at a time: a lease in Redis, renewed while its holder works.

The lease ends by itself `lease_s` after the last renewal, counted by Redis. The holder counts the
same time on its own monotonic clock, from before it asked, so it never believes in a lease that
Redis has given to another. Who lost it stops at the next step: nothing is published without a
lease, and a promotion names the champion that it was decided on besides.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from index.errors import OnesearchError
from server.redis import scripts
from server.redis.connection import RedisConnection, RedisUnavailable
from server.redis.keys import Keys

_RENEWALS = 3


class LeaseHeld(OnesearchError):
    """Another sidecar is at work."""


class LeaseLost(OnesearchError):
    """This sidecar may not go on: its lease is over."""


class Lease:
    """The right to work. `check` may be called from any thread."""

    def __init__(self, redis: RedisConnection, keys: Keys, lease_s: float) -> None:
        self._redis, self._key, self._lease_s = redis, keys.sidecar, lease_s
        self._token = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(6)}"
        self._until = 0.0

    @property
    def held(self) -> bool:
        return time.monotonic() < self._until

    def check(self) -> None:
        """Raises LeaseLost."""
        if not self.held:
            raise LeaseLost("the sidecar's lease is over; another one may be at work")

    async def take(self) -> None:
        """Raises LeaseHeld, naming who has it; RedisUnavailable."""
        asked = time.monotonic()
        lease_ms = round(self._lease_s * 1000)
        if not await self._redis.command("SET", self._key, self._token, "NX", "PX", lease_ms):
            holder = await self._redis.command("GET", self._key)
            host, process, _ = bytes(holder or b"unknown/unknown/").decode().split("/")
            raise LeaseHeld(f"a sidecar is at work on {host}, process {process}")
        self._until = asked + self._lease_s

    async def renew(self) -> None:
        """Raises LeaseLost; RedisUnavailable, which may pass while the lease lasts."""
        asked = time.monotonic()
        lease_ms = round(self._lease_s * 1000)
        if not await self._redis.script(scripts.RENEW_LEASE, [self._key], [self._token, lease_ms]):
            self._until = 0.0
            self.check()
        self._until = asked + self._lease_s

    @asynccontextmanager
    async def holding(self) -> AsyncGenerator[None, None]:
        """Take it for a block and renew it meanwhile; whoever works in the block calls `check`.
        Errors as of `take`."""
        await self.take()
        renewing = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            renewing.cancel()
            with suppress(asyncio.CancelledError):
                await renewing
            with suppress(RedisUnavailable):
                await self._redis.script(scripts.END_LEASE, [self._key], [self._token])
            self._until = 0.0

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / _RENEWALS)
            try:
                await self.renew()
            except RedisUnavailable:
                # It may be back before the lease is over; until then `check` says how things are.
                continue
            except LeaseLost:
                return
