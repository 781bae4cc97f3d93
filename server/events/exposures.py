"""Exposures on their way from the gateway to Redis, off the request path.

A search only appends to a bounded queue in memory. One task writes what waits, in batches; a batch
that was not acknowledged is sent again and counts once. When the queue is full, Redis being away or
slow, the new exposure is dropped and counted: a search never waits for its exposure. What is in the
queue when the process is killed is lost; at an orderly end it is written within `CLOSE_S`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from index.errors import OnesearchError
from server.events.log import BehaviourLog
from server.experiment.records import Exposure
from server.redis.connection import RedisUnavailable

BATCH_EXPOSURES = 200
GATHER_S = 0.05
"""How long the first of a batch waits for others."""
RETRY_S = 0.5
CLOSE_S = 2.0


class ExposureCounts(Protocol):
    """Who counts."""

    def logged(self, exposures: int) -> None: ...

    def dropped(self, exposures: int) -> None: ...


class ExposureQueue:
    """Used on one event loop."""

    def __init__(
        self, log: BehaviourLog, counts: ExposureCounts, logger: FilteringBoundLogger, most: int
    ) -> None:
        self._log = log
        self._counts = counts
        self._logger = logger
        self._most = most
        self._waiting: deque[Exposure] = deque()
        self._in_hand: tuple[str, list[Exposure]] | None = None
        self._some = asyncio.Event()
        self._away = False

    @property
    def waiting(self) -> int:
        """How many are not written yet."""
        return len(self._waiting) + (len(self._in_hand[1]) if self._in_hand else 0)

    def add(self, exposure: Exposure) -> None:
        """Take an exposure, or drop it when too many wait. Never waits."""
        if self.waiting >= self._most:
            self._counts.dropped(1)
            return
        self._waiting.append(exposure)
        self._some.set()

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[None, None]:
        """Write as long as the block lasts; what is left then, within CLOSE_S."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self._finish()

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            if len(self._waiting) < BATCH_EXPOSURES:
                await asyncio.sleep(GATHER_S)
            if not await self._write():
                await asyncio.sleep(RETRY_S)

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                while self.waiting and await self._write():
                    pass
        except TimeoutError:
            self._logger.warning("exposures not written in time", waiting=self.waiting)
        if self.waiting:
            self._counts.dropped(self.waiting)
            self._logger.warning("exposures lost", exposures=self.waiting)

    async def _write(self) -> bool:
        """Write one batch; whether Redis took it."""
        if self._in_hand is None:
            count = min(len(self._waiting), BATCH_EXPOSURES)
            batch = [self._waiting.popleft() for _ in range(count)]
            if not batch:
                self._some.clear()
                return True
            self._in_hand = secrets.token_hex(12), batch
        name, batch = self._in_hand
        try:
            await self._log.write(batch, name)
        except RedisUnavailable as error:
            if not self._away:
                self._away = True
                self._logger.warning("exposures wait for Redis", detail=str(error))
            return False
        except OnesearchError as error:
            # Redis is there and does not do it: neither will it the next time.
            self._logger.error("exposures not taken", detail=str(error), exposures=len(batch))
            self._counts.dropped(len(batch))
        else:
            self._counts.logged(len(batch))
        self._away = False
        self._in_hand = None
        if not self._waiting:
            self._some.clear()
        return True
