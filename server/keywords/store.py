"""Stored keywords: what is written under a query's key, how long, and a look-up that remembers.

A value is an answer: keywords, nothing found (no terms), or a failure, which stands for a while in
place of an answer so that searches do not ask for it again. What was read is remembered in the
process for `remember_s`, at most `entries` of them, so that the head of the queries costs no round
trip.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import orjson

from index.errors import DataError
from server.cache import LruCache
from server.keywords.keywords import Keywords, keywords_from_json
from server.redis.connection import RedisConnection
from server.redis.keys import GENERIC_TTL_S, NOTHING_TTL_S, PERSONAL_TTL_S, Keys

DEFAULT_ENTRIES = 20_000
REMEMBER_S = 300.0
_FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored answer. `keywords` None: there was a failure, told in `failure`."""

    keywords: Keywords | None
    failure: str = ""

    @property
    def empty(self) -> bool:
        """Whether it says that there is nothing to use."""
        return self.keywords is None or not (self.keywords.terms or self.keywords.excluded)


class KeywordStore:
    """Answers by generator version, normalised query and user."""

    def __init__(
        self,
        redis: RedisConnection,
        keys: Keys,
        entries: int = DEFAULT_ENTRIES,
        remember_s: float = REMEMBER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._remembered: LruCache[tuple[str, str, str | None], tuple[float, Stored]] = LruCache(
            entries
        )
        self._remember_s = remember_s
        self._clock = clock

    def remembered(self, version: str, query: str, user_id: str | None) -> Stored | None:
        """What this process read not long ago. No round trip."""
        found = self._remembered.get((version, query, user_id))
        return found[1] if found is not None and found[0] > self._clock() else None

    async def read(
        self, version: str, query: str, user_ids: tuple[str | None, ...]
    ) -> list[Stored | None]:
        """What is stored for each user (None: the generic answer), in one round trip.

        A value that cannot be read is deleted and counts as absent. Raises RedisUnavailable.
        """
        keys = [self._keys.keywords(version, query, user_id) for user_id in user_ids]
        answers: list[Stored | None] = []
        until = self._clock() + self._remember_s
        for key, user_id, raw in zip(
            keys, user_ids, await self._redis.command("MGET", *keys), strict=True
        ):
            stored = None if raw is None else stored_from_json(raw)
            if raw is not None and stored is None:
                await self._redis.command("DEL", key)
            if stored is not None:
                self._remembered.put((version, query, user_id), (until, stored))
            answers.append(stored)
        return answers

    async def lifetime_s(self, version: str, query: str, user_id: str | None) -> float | None:
        """Seconds until a stored answer ends; None without one. Raises RedisUnavailable."""
        left_ms = int(
            await self._redis.command("PTTL", self._keys.keywords(version, query, user_id))
        )
        return None if left_ms == -2 else left_ms / 1000

    async def version(self) -> str | None:
        """The version that workers make now; None before the first. Raises RedisUnavailable."""
        found = await self._redis.command("GET", self._keys.version)
        return None if found is None else found.decode()

    async def announce(self, version: str) -> None:
        """From now on this version is made, and read. Raises RedisUnavailable."""
        await self._redis.command("SET", self._keys.version, version)


def ttl_of(keywords: Keywords, user_id: str | None) -> int:
    """How long an answer is kept, in seconds."""
    if not keywords.terms and not keywords.excluded:
        return NOTHING_TTL_S
    return GENERIC_TTL_S if user_id is None else PERSONAL_TTL_S


def failure_to_json(reason: str) -> bytes:
    """What the store says in place of an answer."""
    return orjson.dumps({_FAILED: reason})


def stored_from_json(raw: bytes) -> Stored | None:
    """A stored value; None for one that cannot be read."""
    try:
        return Stored(keywords_from_json(raw))
    except DataError:
        pass
    try:
        value = cast(object, orjson.loads(raw))
    except orjson.JSONDecodeError:
        return None
    reason = cast(dict[str, object], value).get(_FAILED) if isinstance(value, dict) else None
    return Stored(None, reason) if isinstance(reason, str) else None
