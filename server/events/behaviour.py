"""What a gateway does with behaviour: takes events, writes exposures, knows what users did last.

One connection to Redis for all three; the embedded server, where no URL is set, is joined or
started and left at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from structlog.typing import FilteringBoundLogger

from index.errors import ConfigError, OnesearchError
from index.text import normalise
from server.access import takes_events
from server.context import InMemoryUserContexts, StoredUserContexts
from server.events.exposures import ExposureQueue
from server.events.log import BehaviourLog
from server.events.metrics import BehaviourMetrics
from server.events.records import Event
from server.experiment.assignment import unit_of
from server.experiment.records import NO_EXPERIMENT, ONLY_ARM, SIMULATED_USER, Exposure
from server.metrics import Metrics
from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer
from server.redis.keys import DAY_S, Keys
from server.redis.opening import embedded_server
from server.schemas import SearchRequest, SearchResponse
from server.settings import Settings


class Behaviour:
    """The parts of one gateway. Used on one event loop."""

    def __init__(
        self,
        redis: RedisConnection,
        settings: Settings,
        metrics: Metrics,
        logger: FilteringBoundLogger,
        server: EmbeddedServer | None = None,
    ) -> None:
        """`server`: the embedded one that was started for this and is left with it."""
        keys = Keys(settings.redis_prefix)
        self.metrics = BehaviourMetrics(metrics.registry)
        self.log = BehaviourLog(
            redis,
            keys,
            settings.behaviour_retention_days * DAY_S,
            settings.remembered_items,
        )
        self.contexts = StoredUserContexts(
            redis,
            keys,
            InMemoryUserContexts(settings.remembered_users, settings.remembered_items),
            self.metrics,
            settings.remembered_users,
            settings.remembered_items,
            settings.context_budget_ms / 1000,
        )
        self.exposures = ExposureQueue(self.log, self.metrics, logger, settings.exposure_queue)
        self.metrics.watch_queue(lambda: self.exposures.waiting)
        self._writes = _writes_exposures(settings)
        self._with_queries = settings.exposure_queries
        self._redis = redis
        self._server = server

    async def take(self, events: Sequence[Event]) -> list[bool]:
        """For each event whether it is new. Raises as `BehaviourLog.take` does."""
        taken = await self.log.take(events)
        for event, new in zip(events, taken, strict=True):
            if new and event.touches:
                self.contexts.took(event.user_id or "", event.item_id)
        return taken

    def shown(
        self, request: SearchRequest, answer: SearchResponse, share: float | None = None
    ) -> None:
        """Write down what an answer showed, some time soon. `share`: of the answer's arm."""
        if self._writes:
            self.exposures.add(_exposure(request, answer, share, self._with_queries, time.time()))

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Exposures are written as long as the block lasts; then everything is closed."""
        try:
            async with self.exposures.writing():
                yield
        finally:
            await self.close()

    async def close(self) -> None:
        """Let go of Redis."""
        await self.contexts.close()
        await self._redis.close()
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)


async def start_behaviour(
    settings: Settings, metrics: Metrics, logger: FilteringBoundLogger
) -> Behaviour | None:
    """None where neither events nor exposures are wanted, or, unless a setting asks for them, where
    no server program is installed. A Redis that is named need not answer yet.

    Raises ConfigError for a wrong address, or where there is no server program and a setting asks.
    """
    if not (takes_events(settings) or _writes_exposures(settings)):
        return None
    server = embedded_server(settings)
    if server is not None:
        try:
            await asyncio.to_thread(server.start)
        except ConfigError as error:
            if settings.events or settings.exposures:
                raise
            logger.warning("events are not taken", detail=str(error))
            return None
    url = settings.redis_address or (server.url if server is not None else "")
    redis = RedisConnection(url, settings.redis_timeout_s)
    if server is None:
        await _warn_of_loss(redis, logger)
    return Behaviour(redis, settings, metrics, logger, server)


async def _warn_of_loss(redis: RedisConnection, logger: FilteringBoundLogger) -> None:
    """Say so where a named server would forget what it acknowledged."""
    try:
        found = await redis.command("CONFIG", "GET", "appendonly")
    except OnesearchError:
        # Away for now, or it tells nobody its settings.
        return
    finally:
        # Whoever uses it next may be on another loop.
        await redis.close()
    values = [bytes(one).decode() for one in found]
    if values[1:] == ["no"]:
        logger.warning("events may be lost", detail="the named Redis has no append-only file")


def _writes_exposures(settings: Settings) -> bool:
    return takes_events(settings) if settings.exposures is None else settings.exposures


def _exposure(
    request: SearchRequest,
    answer: SearchResponse,
    share: float | None,
    with_query: bool,
    now: float,
) -> Exposure:
    user_id = request.user_id or ""
    return Exposure(
        answer.experiment or NO_EXPERIMENT,
        answer.arm or ONLY_ARM,
        unit_of(request.user_id, answer.request_id),
        answer.request_id,
        now,
        tuple(hit.item_id for hit in answer.hits),
        normalise(request.query) if with_query else "",
        share,
        answer.history_items,
        answer.model_version,
        answer.index_version,
        answer.simulated or user_id.startswith(SIMULATED_USER),
    )
