"""How many requests a client may send: one token bucket for each, shared by all gateways in Redis.

A client is an API key's name or, where there are no keys, an address (of IPv6 the /64, which is
what one customer has). A bucket fills with `rate` tokens a second up to `rate · burst_s` and a
request takes one.

Asking Redis for each request would cost more than many a request. So a gateway fetches the tokens
of AHEAD_S at once and hands them out itself; those it does not need within PURSE_S are lost, and so
is at most that share of a client's rate. A client that has none left is refused without asking
again until Redis said there is one.

Where no Redis is named, or it does not answer in ASK_S, the bucket is this process's own: n
gateways then let in up to n times as much. Redis is tried again every AWAY_S.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from index.errors import OnesearchError
from server.access import ADMIN_PATH, is_below
from server.cache import LruCache
from server.errors import Problem, refuse
from server.keys import Key
from server.redis.connection import RedisConnection
from server.redis.keys import Keys
from server.redis.scripts import TAKE_TOKENS
from server.security_metrics import SecurityMetrics

API_FOLDER = "/v1"
CLIENTS = 20_000
"""Remembered; one that was forgotten begins with a full bucket here, not in Redis."""
AHEAD_S = 0.1
PURSE_S = 1.0
ASK_S = 0.05
AWAY_S = 1.0
MIN_CAPACITY = 1.0
_IPV6_CUSTOMER_BITS = 64


@dataclass(slots=True)
class Bucket:
    """A client's tokens in this process, at a monotonic time."""

    tokens: float
    at: float


class LocalBuckets:
    """Token buckets of one process."""

    def __init__(self, burst_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst_s = burst_s
        self._clock = clock
        self._buckets: LruCache[str, Bucket] = LruCache(CLIENTS)

    def take(self, client: str, rate: float) -> float:
        """Take a token: 0, or the seconds until there is one. `rate`: tokens per second."""
        now, capacity = self._clock(), capacity_of(rate, self._burst_s)
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = Bucket(capacity, now)
            self._buckets.put(client, bucket)
        bucket.tokens = min(capacity, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / rate
        bucket.tokens -= 1
        return 0.0


@dataclass(slots=True)
class Purse:
    """Tokens of a client that were fetched, until when they count; until when it is known that
    there are none; who is asking Redis now. Monotonic times."""

    tokens: int = 0
    until: float = 0.0
    empty_until: float = 0.0
    asking: asyncio.Task[None] | None = None


class SharedBuckets:
    """Token buckets in Redis. Used on one event loop; `close` ends what is being asked."""

    def __init__(
        self,
        redis: RedisConnection,
        keys: Keys,
        burst_s: float,
        metrics: SecurityMetrics,
        log: FilteringBoundLogger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._burst_s = burst_s
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._local = LocalBuckets(burst_s, clock)
        self._purses: LruCache[str, Purse] = LruCache(CLIENTS)
        self._asking: set[asyncio.Task[None]] = set()
        self._away_until = 0.0
        self._away = False

    async def take(self, client: str, rate: float) -> float:
        """As `LocalBuckets.take`, of the token that all gateways share."""
        purse = self._purses.get(client)
        if purse is None:
            purse = Purse()
            self._purses.put(client, purse)
        # Again and again: others may have taken what was fetched. Each time somebody gets a token,
        # or it is known that there is none, or that Redis is away.
        while True:
            now = self._clock()
            if purse.tokens and now < purse.until:
                purse.tokens -= 1
                return 0.0
            if now < purse.empty_until:
                return purse.empty_until - now
            if now < self._away_until:
                break
            if purse.asking is None:
                purse.asking = asyncio.create_task(self._ask(client, rate, purse))
                self._asking.add(purse.asking)
                purse.asking.add_done_callback(self._asking.discard)
            # The question goes on when this request is cancelled: it is asked for others as well.
            await asyncio.wait((purse.asking,))
        return self._local.take(client, rate)

    async def close(self) -> None:
        """End all questions and the connection."""
        tasks = tuple(self._asking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._redis.close()

    async def _ask(self, client: str, rate: float, purse: Purse) -> None:
        wanted = max(1, math.floor(rate * AHEAD_S))
        capacity = capacity_of(rate, self._burst_s)
        try:
            async with asyncio.timeout(ASK_S):
                granted, wait_ms = await self._redis.script(
                    TAKE_TOKENS, [self._keys.tokens(client)], [rate, capacity, wanted]
                )
        except (OnesearchError, TimeoutError) as error:
            self._went_away(error)
            return
        finally:
            purse.asking = None
        self._came_back()
        now = self._clock()
        purse.tokens, purse.until = int(granted), now + PURSE_S
        purse.empty_until = 0.0 if granted else now + int(wait_ms) / 1000

    def _went_away(self, error: Exception) -> None:
        self._away_until = self._clock() + AWAY_S
        self._metrics.rates_local.set(1)
        if not self._away:
            detail = str(error) or "no answer in time"
            self._log.warning("rates are counted by this process alone", detail=detail)
        self._away = True

    def _came_back(self) -> None:
        if self._away:
            self._log.info("rates are shared again")
        self._away = False
        self._metrics.rates_local.set(0)


class RateLimit:
    """ASGI middleware, before the body is read: 429 with Retry-After above a client's rate.

    Probes, metrics and pages are not limited. `rate` None: only keys that have one of their own."""

    def __init__(
        self,
        app: ASGIApp,
        buckets: LocalBuckets | SharedBuckets,
        rate: float | None,
        metrics: SecurityMetrics,
    ) -> None:
        self._app = app
        self._local = buckets if isinstance(buckets, LocalBuckets) else None
        self._shared = buckets if isinstance(buckets, SharedBuckets) else None
        self._rate = rate
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_limited(scope["path"]):
            await self._app(scope, receive, send)
            return
        key: Key | None = scope.get("onesearch.key")
        rate = self._rate if key is None or key.rate is None else key.rate
        if rate is None:
            await self._app(scope, receive, send)
            return
        client = network_of(scope) if key is None else f"key:{key.name}"
        if self._shared is not None:
            wait_s = await self._shared.take(client, rate)
        else:
            assert self._local is not None
            wait_s = self._local.take(client, rate)
        if not wait_s:
            await self._app(scope, receive, send)
            return
        self._metrics.rate_limited("address" if key is None else "key")
        problem = Problem(
            "too-many-requests",
            f"at most {rate:g} requests a second are taken from this client",
            retry_after_s=wait_s,
        )
        await refuse(problem, scope, receive, send)


def capacity_of(rate: float, burst_s: float) -> float:
    """How many tokens a bucket holds."""
    return max(MIN_CAPACITY, rate * burst_s)


def network_of(scope: Scope) -> str:
    """Who a request without key counts for: its address, of IPv6 the network."""
    client = scope.get("client")
    if client is None:
        return "address:"
    text = str(client[0])
    if ":" not in text:
        return f"address:{text}"
    try:
        address = ipaddress.IPv6Address(text.partition("%")[0])
    except ValueError:
        return "address:"
    if address.ipv4_mapped is not None:
        return f"address:{address.ipv4_mapped}"
    network = ipaddress.IPv6Network((address, _IPV6_CUSTOMER_BITS), strict=False)
    return f"address:{network.network_address}"


def _is_limited(path: str) -> bool:
    return is_below(API_FOLDER, path) or is_below(ADMIN_PATH, path)
