"""Announcements on a channel: the registry has changed, look at it now.

Who publishes says what changed; who hears it looks for itself. So an announcement that is lost,
comes twice or is made up does no harm, and nothing of it is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import orjson

from index.errors import OnesearchError
from models.registry.aliases import Aliases
from server.redis.connection import RedisConnection
from server.redis.keys import Keys
from server.settings import Settings

RETRY_S = 0.25
MAX_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """A state of the aliases: its revision, and the champion in it."""

    revision: int
    champion: str | None

    @classmethod
    def read(cls, message: bytes) -> Announcement | None:
        """What a message says; None for one that is none of ours."""
        try:
            raw = cast(dict[str, Any], orjson.loads(message))
            revision, champion = raw["revision"], raw["champion"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None
        if not isinstance(revision, int) or not isinstance(champion, str | None):
            return None
        return cls(revision, champion)

    def message(self) -> bytes:
        """As it travels."""
        return orjson.dumps({"revision": self.revision, "champion": self.champion})


class Announcements:
    """One process's part in the channel. Used on one event loop."""

    def __init__(self, url: str, timeout_s: float, keys: Keys) -> None:
        """Raises ConfigError for an address that cannot be one of Redis."""
        self._redis = RedisConnection(url, timeout_s)
        self._channel = keys.announcements

    async def announce(self, announcement: Announcement) -> int:
        """How many heard it. Raises RedisUnavailable; Refused."""
        return int(await self._redis.command("PUBLISH", self._channel, announcement.message()))

    async def listen(
        self, heard: Callable[[bytes], None], state: Callable[[OnesearchError | None], None]
    ) -> None:
        """Hear what is announced until cancelled, and connect again whenever that ends.

        `state(None)`: from now on nothing is missed. `state(error)`: it is.
        """
        retry_s = RETRY_S
        while True:
            try:
                async with self._redis.subscribed(self._channel) as subscription:
                    retry_s = RETRY_S
                    state(None)
                    while True:
                        heard(await subscription.next())
            except OnesearchError as error:
                state(error)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, MAX_RETRY_S)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.close()


def announcements_of(settings: Settings) -> Announcements | None:
    """Where a Redis is named; None elsewhere, as the embedded one is not shared by machines."""
    if settings.redis_address is None:
        return None
    keys = Keys(settings.redis_prefix)
    return Announcements(settings.redis_address, settings.redis_timeout_s, keys)


async def announce_once(settings: Settings, state: Aliases) -> None:
    """For a program that ends: tell those who follow the registry, where a Redis is named.

    Raises ConfigError for a wrong address, RedisUnavailable, Refused.
    """
    announcements = announcements_of(settings)
    if announcements is None:
        return
    try:
        await announcements.announce(Announcement(state.revision, state.champion))
    finally:
        await announcements.close()
