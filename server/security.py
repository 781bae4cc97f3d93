"""A gateway's API keys, rates and cross-origin rules, put together from the settings.

Nothing here costs a request anything where it is not switched on: then there is no middleware.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.middleware import Middleware
from structlog.typing import FilteringBoundLogger

from server.access import is_loopback
from server.connection_guard import ConnectionGuard
from server.cross_origin import CrossOrigin
from server.keys_door import KeyDoor
from server.keys_ring import KeyRing
from server.limits_rate import LocalBuckets, RateLimit, SharedBuckets
from server.metrics import Metrics
from server.redis.connection import RedisConnection
from server.redis.keys import Keys
from server.security_metrics import SecurityMetrics
from server.settings import Settings


class Security:
    """One gateway's. Used on one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics, log: FilteringBoundLogger) -> None:
        """Raises ConfigError where the keys file cannot be read."""
        self._settings = settings
        self._log = log
        self.metrics = SecurityMetrics(metrics.registry)
        self._ring = None
        if settings.keys_file is not None:
            self._ring = KeyRing(settings.keys_file, log)
            metrics.registry.register(self._ring)
        self._buckets = self._make_buckets()
        self.guard = ConnectionGuard(
            settings.connections, settings.head_timeout_s, self.metrics, log
        )

    def outside(self) -> list[Middleware]:
        """What comes before a request is counted and logged."""
        origins = self._settings.cors_origins
        return [Middleware(CrossOrigin, origins=origins)] if origins else []

    def doors(self) -> list[Middleware]:
        """What decides whether a request comes in at all."""
        doors: list[Middleware] = []
        if self._ring is not None:
            public = self._settings.metrics_public
            doors.append(
                Middleware(KeyDoor, ring=self._ring, metrics=self.metrics, public_metrics=public)
            )
        if self._buckets is not None:
            rate = self._settings.rate_limit
            doors.append(
                Middleware(RateLimit, buckets=self._buckets, rate=rate, metrics=self.metrics)
            )
        return doors

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Follow the keys file and share rates as long as the block lasts."""
        async with AsyncExitStack() as stack:
            if isinstance(self._buckets, SharedBuckets):
                stack.push_async_callback(self._buckets.close)
            if self._ring is not None:
                await stack.enter_async_context(self._ring.running())
            yield

    def _make_buckets(self) -> LocalBuckets | SharedBuckets | None:
        settings = self._settings
        if settings.rate_limit is None and self._ring is None:
            return None
        if settings.redis_address is None:
            return LocalBuckets(settings.rate_burst_s)
        redis = RedisConnection(settings.redis_address, settings.redis_timeout_s)
        keys = Keys(settings.redis_prefix)
        return SharedBuckets(redis, keys, settings.rate_burst_s, self.metrics, self._log)


def warn_if_open(settings: Settings, log: FilteringBoundLogger) -> None:
    """Say so where everybody who reaches an address of the network may use the server."""
    if settings.keys_file is None and not is_loopback(settings.host):
        doors = {
            "catalogue_changes": settings.catalogue_changes,
            "events": settings.events,
            "admin": settings.admin,
        }
        log.warning(
            "no API keys: everybody who reaches this server may search",
            host=settings.host,
            open_to_everybody=["search", *(name for name, opened in doors.items() if opened)],
            remedy="make keys with `onesearch keys create` and set keys_file "
            "(ONESEARCH_KEYS_FILE), or put a proxy that checks who asks in front",
        )
