"""The request path's side of keywords: read what is stored, never wait, ask for what is missing.

A look-up first asks this process's memory. Otherwise it reads Redis in a task of its own and waits
for that at most until `budget_s` after it began; a late answer is remembered for the next search.
What is missing enters the queue in another task that no search waits for. Both kinds of tasks are
owned and bounded: past the bound a search goes on without.

A pulse, one task, learns the version that workers make, and the queue's numbers for the metrics.
While Redis does not answer, no search tries it: the pulse does, and says when it is back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from structlog.typing import FilteringBoundLogger

from index.errors import OnesearchError
from server.cache import LruCache
from server.keywords.jobs import Priority
from server.keywords.keywords import KeywordRequest, Keywords
from server.keywords.queue import ENTRIES, KeywordQueue, QueueStatus
from server.keywords.store import KeywordStore, Stored
from server.redis.connection import RedisConnection, RedisUnavailable
from server.redis.embedded import EmbeddedServer
from server.traces import Traces

State = Literal["hit", "nothing", "miss", "late", "unavailable"]
STATES: tuple[State, ...] = get_args(State)
MissedJob = Literal["queued", "duplicate", "stored", "full", "dropped", "failed"]
MISSED_JOBS: tuple[MissedJob, ...] = (*ENTRIES, "dropped", "failed")
PULSE_S = 5.0
AWAY_PULSE_S = 0.25
MOST_READS = 64
MOST_ENTERING = 256
ASKED_ENTRIES = 20_000
ASKED_S = 2.0
"""A query that was missed is not looked for again that soon."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search gets. `nothing`: it is known that there are none. `late`: the budget was over.

    `from_memory`: without a round trip.
    """

    state: State
    keywords: Keywords | None = None
    from_memory: bool = False


class KeywordCounts(Protocol):
    """Who counts."""

    def read(self, found: Found) -> None: ...

    def entered(self, what: MissedJob) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class LookUp:
    """A look-up that began at a monotonic time: known already, or being read."""

    began: float
    known: Found | None
    task: asyncio.Task[Found] | None


class KeywordReader:
    """Reads for searches. Used on one event loop at a time; `close` ends its tasks."""

    def __init__(
        self,
        redis: RedisConnection,
        store: KeywordStore,
        queue: KeywordQueue,
        counts: KeywordCounts,
        log: FilteringBoundLogger,
        budget_s: float,
        server: EmbeddedServer | None = None,
        clock: Callable[[], float] = time.monotonic,
        traces: Traces | None = None,
    ) -> None:
        """`server`: the embedded one that was started for this reader and is stopped with it."""
        self.status: QueueStatus | None = None
        self.version: str | None = None
        self.away = False
        self._redis = redis
        self._store = store
        self._queue = queue
        self._counts = counts
        self._log = log
        self._budget_s = budget_s
        self._server = server
        self._clock = clock
        self._traces = traces
        self._reads: set[asyncio.Task[Found]] = set()
        self._entering: set[asyncio.Task[None]] = set()
        self._asked: LruCache[tuple[str | None, str, str | None], float] = LruCache(ASKED_ENTRIES)
        self._pulse: asyncio.Task[None] | None = None
        self._has_beaten = False
        self._beat = asyncio.Event()

    def look_up(self, request: KeywordRequest) -> LookUp:
        """Begin. Known at once: what this process remembers, and what cannot be known now."""
        began, query = self._clock(), request.normalised
        if self._pulse is None or self._pulse.done():
            self._pulse = asyncio.get_running_loop().create_task(self._beating())
        user_id = request.user_id if request.personalised else None
        known = self._known_now(query, user_id)
        if known is not None:
            return LookUp(began, known, None)
        if self.version is None:
            # No worker has ever made any: the job waits for the first one.
            self._asked.put((None, query, user_id), began + ASKED_S)
            self._enter_missing(_generic(request), None)
            return LookUp(began, Found("miss"), None)
        task = _owned(self._reads, self._read(self.version, request, user_id))
        return LookUp(began, None, task)

    async def found(self, look_up: LookUp) -> Found:
        """What came of a look-up, at the latest `budget_s` after it began."""
        found = look_up.known
        if found is None:
            assert look_up.task is not None
            left = look_up.began + self._budget_s - self._clock()
            if not look_up.task.done() and left > 0:
                await asyncio.wait((look_up.task,), timeout=left)
            found = look_up.task.result() if look_up.task.done() else Found("late")
        self._counts.read(found)
        return found

    async def close(self) -> None:
        """End all tasks, the connection and the embedded server."""
        tasks: list[asyncio.Task[Any]] = [*self._reads, *self._entering]
        if self._pulse is not None:
            tasks.append(self._pulse)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._redis.close()
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)

    def _known_now(self, query: str, user_id: str | None) -> Found | None:
        """What can be said without a round trip; None: Redis has to be asked."""
        generic: Stored | None = None
        if self.version is not None:
            generic = self._store.remembered(self.version, query, None)
            personal = generic
            if user_id is not None:
                personal = self._store.remembered(self.version, query, user_id)
            if personal is not None:
                return _best(personal, generic, from_memory=True)
        if self.away:
            return Found("unavailable")
        asked_until = self._asked.get((self.version, query, user_id))
        if asked_until is not None and asked_until > self._clock():
            return _best(generic, from_memory=True)
        if not self._has_beaten or len(self._reads) >= MOST_READS:
            return Found("late")
        return None

    async def _read(self, version: str, request: KeywordRequest, user_id: str | None) -> Found:
        query = request.normalised
        user_ids = (None,) if user_id is None else (user_id, None)
        try:
            answers = await self._store.read(version, query, user_ids)
        except RedisUnavailable as error:
            self._went_away(error)
            return Found("unavailable")
        except OnesearchError as error:
            self._log.error("keywords not readable", detail=str(error))
            return Found("miss")
        if answers[0] is None:
            self._asked.put((version, query, user_id), self._clock() + ASKED_S)
            # The generic answer serves everybody: it is made first.
            self._enter_missing(_generic(request) if answers[-1] is None else request, version)
        return _best(*answers, from_memory=False)

    def _enter_missing(self, request: KeywordRequest, version: str | None) -> None:
        if len(self._entering) >= MOST_ENTERING:
            self._counts.entered("dropped")
            return
        _owned(self._entering, self._enter(request, version))

    async def _enter(self, request: KeywordRequest, version: str | None) -> None:
        began = self._clock()
        entry: MissedJob = "failed"
        # The task that this is was begun by a search, so what is at hand is that search's.
        traceparent = None if self._traces is None else self._traces.traceparent
        try:
            [entry] = await self._queue.enter([request], Priority.LIVE, version, traceparent)
        except RedisUnavailable as error:
            self._went_away(error)
        except OnesearchError as error:
            self._log.error("keyword job not taken", detail=str(error))
        self._counts.entered(entry)
        if self._traces is not None and self._traces.recording:
            seconds = self._clock() - began
            self._traces.record("keywords.enter", seconds, facts={"outcome": entry})

    def _went_away(self, error: RedisUnavailable) -> None:
        if not self.away:
            self.away = True
            self._log.warning("keywords without Redis", detail=str(error))
            self._beat.set()

    async def _beating(self) -> None:
        self._beat.clear()
        while True:
            try:
                self.version = await self._store.version()
                self.status = await self._queue.status()
            except RedisUnavailable as error:
                self._went_away(error)
                self.status = None
            except OnesearchError as error:
                self._log.error("keyword queue not readable", detail=str(error))
            else:
                self._has_beaten = True
                if self.away:
                    self.away = False
                    self._log.info("Redis is back")
            self._beat.clear()
            try:
                async with asyncio.timeout(AWAY_PULSE_S if self.away else PULSE_S):
                    await self._beat.wait()
            except TimeoutError:
                continue
            # It has just failed: not at once again.
            await asyncio.sleep(AWAY_PULSE_S)


def _generic(request: KeywordRequest) -> KeywordRequest:
    return KeywordRequest(request.query, locale=request.locale)


def _best(*answers: Stored | None, from_memory: bool) -> Found:
    """The first answer with something in it."""
    stored = [answer for answer in answers if answer is not None]
    for answer in stored:
        if not answer.empty:
            return Found("hit", answer.keywords, from_memory)
    return Found("nothing" if stored else "miss", None, from_memory)


def _owned(tasks: set[asyncio.Task[Any]], work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
