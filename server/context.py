"""What is known of a user when a request says only who they are.

What the user did last, from the events of all gateways (Redis), where it can be read in time; else
from this process's memory: what it read or took of the user's events before, or the history that
came with this user id.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, get_args

from index.errors import OnesearchError
from server.cache import LruCache
from server.redis.connection import RedisConnection
from server.redis.keys import Keys

ContextRead = Literal["stored", "unknown", "late", "unavailable"]
CONTEXT_READS: tuple[ContextRead, ...] = get_args(ContextRead)
MOST_READS = 64
AWAY_S = 1.0
"""After a failure, no search asks Redis for so long."""


class UserContexts(Protocol):
    """Recent items of users, oldest first."""

    async def history(self, user_id: str) -> Sequence[str]:
        """Item ids; empty for a user that is not known."""
        ...

    async def remember(self, user_id: str, item_ids: Sequence[str]) -> None:
        """Keep what a request told of its user."""
        ...


class ContextCounts(Protocol):
    """Who counts."""

    def context_read(self, what: ContextRead) -> None: ...


class InMemoryUserContexts:
    """The histories that requests brought, of the users seen last. Lost when the process ends."""

    def __init__(self, users: int, items: int) -> None:
        self._users = users
        self._items = items
        self._histories: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    async def history(self, user_id: str) -> Sequence[str]:
        """The last history that came with this user id."""
        return self._histories.get(user_id, ())

    async def remember(self, user_id: str, item_ids: Sequence[str]) -> None:
        """The newest `items` replace what was kept before."""
        self._histories[user_id] = tuple(item_ids[-self._items :])
        self._histories.move_to_end(user_id)
        while len(self._histories) > self._users:
            self._histories.popitem(last=False)


class StoredUserContexts:
    """What users clicked and ordered, as their events say; in memory what their requests said.

    A read takes a search `budget_s` at most and never fails it: one that is late is of use to the
    next search. Used on one event loop.
    """

    def __init__(
        self,
        redis: RedisConnection,
        keys: Keys,
        memory: InMemoryUserContexts,
        counts: ContextCounts,
        users: int,
        items: int,
        budget_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._memory = memory
        self._counts = counts
        self._items = items
        self._known: LruCache[str, list[str]] = LruCache(users)
        """What was read or taken last, oldest first."""
        self._budget_s = budget_s
        self._clock = clock
        self._away_until = 0.0
        self._reads: set[asyncio.Task[list[str] | None]] = set()

    async def history(self, user_id: str) -> Sequence[str]:
        """Item ids of the last events, else of the last request that brought a history."""
        if self._clock() < self._away_until:
            self._counts.context_read("unavailable")
            return await self._remembered(user_id)
        if len(self._reads) >= MOST_READS:
            self._counts.context_read("late")
            return await self._remembered(user_id)
        task = asyncio.get_running_loop().create_task(self._read(user_id))
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)
        # Not cancelled when it is late: that would cost the connection.
        await asyncio.wait((task,), timeout=self._budget_s)
        stored = task.result() if task.done() else None
        self._counts.context_read(
            "late" if not task.done() else "unavailable" if stored is None else _state(stored)
        )
        return stored or await self._remembered(user_id)

    def took(self, user_id: str, item_id: str) -> None:
        """This process took an event of a user, the newest."""
        before = [item for item in self._known.get(user_id) or () if item != item_id]
        self._known.put(user_id, [*before, item_id][-self._items :])

    async def remember(self, user_id: str, item_ids: Sequence[str]) -> None:
        """In this process's memory: Redis has what users did, not what requests say of them."""
        await self._memory.remember(user_id, item_ids)

    async def close(self) -> None:
        """End the reads that nobody waits for."""
        for task in self._reads:
            task.cancel()
        await asyncio.gather(*self._reads, return_exceptions=True)

    async def _remembered(self, user_id: str) -> Sequence[str]:
        return self._known.get(user_id) or await self._memory.history(user_id)

    async def _read(self, user_id: str) -> list[str] | None:
        """Item ids, oldest first; None when they cannot be had."""
        try:
            found = await self._redis.command(
                "ZRANGE", self._keys.recent(user_id), -self._items, -1
            )
        except OnesearchError:
            self._away_until = self._clock() + AWAY_S
            return None
        items = [bytes(item).decode() for item in found]
        if items or self._known.get(user_id):
            self._known.put(user_id, items)
        return items


def _state(stored: list[str]) -> ContextRead:
    return "stored" if stored else "unknown"
