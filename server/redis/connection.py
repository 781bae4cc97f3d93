"""One process's connection to Redis: every call has a time limit, every failure is one error.

A call either answers within `timeout_s` or raises `RedisUnavailable`; the next call tries anew, so
that nothing has to be restarted when Redis comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import OutOfMemoryError as RedisOutOfMemory
from redis.exceptions import TimeoutError as RedisTimeout

from index.errors import ConfigError, OnesearchError
from server.redis.scripts import Script

SCHEMES = ("redis", "rediss", "unix")
CONNECTIONS = 128
GRACE = 2.5
"""A whole call, connecting included, may take so many times the limit of one step."""
Argument = str | bytes | int | float
QUIET_S = 5.0
"""After so long without a message a subscription asks whether Redis is still there."""
_AWAY = (RedisConnectionError, RedisTimeout, ReadOnlyError, RedisOutOfMemory, OSError, TimeoutError)


class RedisUnavailable(OnesearchError):
    """Redis cannot be reached, is starting, is full or does not answer in time. May pass."""


class Refused(OnesearchError):
    """Redis is there and does not do this."""


class RedisConnection:
    """A pool of connections to one server. Used on one event loop."""

    def __init__(self, url: str, timeout_s: float) -> None:
        check_url(url)
        self._timeout_s = timeout_s
        self._redis: Any = Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=CONNECTIONS,
            protocol=2,
        )

    async def command(self, *parts: Argument) -> Any:
        """The answer of one command. Raises RedisUnavailable; Refused."""
        try:
            async with asyncio.timeout(self._timeout_s * GRACE):
                answer = await self._redis.execute_command(*parts)
            _end_if_cancelled()
            return answer
        except _AWAY as error:
            _end_if_cancelled()
            raise RedisUnavailable(_told(error)) from None
        except NoScriptError:
            raise
        except ResponseError as error:
            # A restarted server says so while it reads its data.
            if str(error).startswith(("LOADING", "BUSY ", "MISCONF", "MASTERDOWN", "CLUSTERDOWN")):
                raise RedisUnavailable(_told(error)) from None
            raise Refused(f"Redis refused {parts[0]}: {error}") from None
        except RedisError as error:
            raise RedisUnavailable(_told(error)) from None

    async def script(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> Any:
        """The answer of a script; its text travels only when Redis does not know it."""
        try:
            return await self.command("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self.command("EVAL", script.text, len(keys), *keys, *arguments)

    @asynccontextmanager
    async def subscribed(self, channel: str) -> AsyncGenerator[Subscription, None]:
        """Hear a channel for a block, on a connection of its own. Errors as of `command`."""
        pubsub = self._redis.pubsub()
        try:
            subscription = Subscription(pubsub, self._timeout_s)
            await subscription.begin(channel)
            yield subscription
        finally:
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(self._timeout_s):
                    await pubsub.aclose()

    async def close(self) -> None:
        """Close all connections."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._redis.aclose()
        except (RedisError, OSError, TimeoutError):
            # Gone is gone: there is nothing to be kept of a connection that cannot be closed.
            return


class Subscription:
    """Hears one channel. Made by `RedisConnection.subscribed`."""

    def __init__(self, pubsub: Any, timeout_s: float) -> None:
        self._pubsub = pubsub
        self._timeout_s = timeout_s

    async def begin(self, channel: str) -> None:
        """On return nothing is missed. Raises RedisUnavailable; Refused."""
        try:
            async with asyncio.timeout(self._timeout_s * GRACE):
                await self._pubsub.subscribe(channel)
                await self._pubsub.get_message(timeout=self._timeout_s)
            _end_if_cancelled()
        except ResponseError as error:
            raise Refused(f"Redis refused SUBSCRIBE: {error}") from None
        except (*_AWAY, RedisError) as error:
            _end_if_cancelled()
            raise RedisUnavailable(_told(error)) from None

    async def next(self) -> bytes:
        """The next message, however long that takes. Raises RedisUnavailable when the connection is
        lost, or when nothing comes, not even the answer to a ping."""
        while True:
            try:
                message = await self._pubsub.get_message(timeout=QUIET_S)
                if message is None:
                    async with asyncio.timeout(self._timeout_s * GRACE):
                        await self._pubsub.ping()
                        message = await self._pubsub.get_message(timeout=self._timeout_s)
                _end_if_cancelled()
            except (*_AWAY, RedisError) as error:
                _end_if_cancelled()
                raise RedisUnavailable(_told(error)) from None
            if message is None:
                raise RedisUnavailable("Redis does not answer: no sign of life")
            if message["type"] == "message":
                return message["data"]


def _end_if_cancelled() -> None:
    """The client sometimes takes a cancellation for a lost connection and goes on: not so here."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def check_url(url: str) -> None:
    """Raises ConfigError for an address that cannot be one of Redis."""
    try:
        parts = urlsplit(url)
        scheme, _ = parts.scheme, parts.port
    except ValueError:
        # Its words would repeat a part of the address, which may be the password.
        raise ConfigError(
            "redis_url is no address: other characters than letters and digits in its password "
            "are written as %XX"
        ) from None
    if scheme not in SCHEMES:
        raise ConfigError(
            f"redis_url must begin with {', '.join(f'{name}://' for name in SCHEMES)}, "
            f"not with {scheme!r}"
        )


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"Redis does not answer: {text}"
