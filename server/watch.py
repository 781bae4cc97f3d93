"""Watches the registry, so that servers converge on a champion that any process promotes.

Two ways to learn of a change. The registry's aliases are one small file: reading it costs one
listing, in a thread, every POLL_S. And where a Redis is named, who changes them announces it there,
and everybody who hears it reads the file at once. The file is what counts: with Redis away servers
are of one mind a poll later. No search waits for any of this.

A change that nobody has announced is announced by the first server that sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, get_args

from structlog.typing import FilteringBoundLogger

from index.errors import OnesearchError
from server.redis.announcements import Announcement, Announcements
from server.rollout import Rollout

POLL_S = 0.5
PAUSE_S = 0.02
"""Between two looks at least, however much is announced."""

Way = Literal["announcement", "directory", "admin", "verdict"]
WAYS: tuple[Way, ...] = get_args(Way)
Channel = Literal["off", "on", "away"]
Message = Literal["heard", "sent", "failed"]
MESSAGES: tuple[Message, ...] = get_args(Message)


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """`learnt`: how this server came to what it serves; "start" for what it began with. `ways`: how
    often each way. `channel`: "off" where no Redis is named. `messages`: of announcements."""

    learnt: Way | Literal["start"]
    ways: dict[Way, int]
    channel: Channel
    messages: dict[Message, int]


class Watch:
    """One server's. Used on one event loop."""

    def __init__(
        self,
        rollout: Rollout,
        log: FilteringBoundLogger,
        announcements: Announcements | None = None,
        interval_s: float | None = None,
    ) -> None:
        """`announcements` are closed with `running`. `interval_s`: of the poll, POLL_S if None."""
        self._rollout = rollout
        self._log = log
        self._announcements = announcements
        self._interval_s = POLL_S if interval_s is None else interval_s
        self._learnt: Way | Literal["start"] = "start"
        self._ways = dict.fromkeys(WAYS, 0)
        self._messages = dict.fromkeys(MESSAGES, 0)
        self._channel: Channel = "off" if announcements is None else "away"
        self._told_away = False
        self._deciding = 0
        self._wake: Way | None = None
        self._awake, self._to_send = asyncio.Event(), asyncio.Event()
        status = rollout.status()
        self._generation = status.generation
        self._known = self._latest = Announcement(status.revision, status.champion)

    def status(self) -> WatchStatus:
        """As of now."""
        return WatchStatus(self._learnt, dict(self._ways), self._channel, dict(self._messages))

    @contextmanager
    def deciding(self) -> Generator[None, None, None]:
        """A block in which this server's own administrators may change what is served."""
        self._deciding += 1
        try:
            yield
        finally:
            self._observe("admin")
            self._deciding -= 1
            self._look("admin")

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Converge again and again as long as the block lasts."""
        async with AsyncExitStack() as stack:
            works = [self._follow()]
            if self._announcements is not None:
                stack.push_async_callback(self._announcements.close)
                works += [
                    self._announcements.listen(self._heard, self._connected),
                    self._send(self._announcements),
                ]
            tasks = [asyncio.create_task(work) for work in works]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                for task in tasks:
                    with suppress(asyncio.CancelledError):
                        await task

    async def _follow(self) -> None:
        way: Way = "directory"
        while True:
            rollbacks = self._rollout.status().rollbacks
            await self._rollout.converge()
            if self._rollout.status().rollbacks != rollbacks:
                way = "verdict"
            self._observe("admin" if self._deciding else way)
            await asyncio.sleep(PAUSE_S)
            way = await self._next()

    async def _next(self) -> Way:
        """Why to look again."""
        try:
            async with asyncio.timeout(self._interval_s):
                await self._awake.wait()
        except TimeoutError:
            return "directory"
        way, self._wake = self._wake, None
        self._awake.clear()
        return way or "directory"

    def _look(self, way: Way) -> None:
        self._wake = way
        self._awake.set()

    def _observe(self, way: Way) -> None:
        """Whether another generation is served, and whether the aliases are others."""
        status = self._rollout.status()
        if status.generation != self._generation:
            self._generation, self._learnt = status.generation, way
            self._ways[way] += 1
            self._log.info("generation followed", generation=status.generation, learnt=way)
        self._latest = Announcement(status.revision, status.champion)
        if self._latest != self._known:
            self._to_send.set()

    def _heard(self, message: bytes) -> None:
        self._messages["heard"] += 1
        self._known = Announcement.read(message) or self._known
        self._look("announcement")

    def _connected(self, error: OnesearchError | None) -> None:
        self._channel = "on" if error is None else "away"
        if error is None:
            # What was announced meanwhile is in the registry.
            self._look("directory")
            if self._told_away:
                self._log.info("announcements are heard again")
        elif not self._told_away:
            self._log.warning("announcements are not heard", detail=str(error))
        self._told_away = error is not None

    async def _send(self, announcements: Announcements) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            latest = self._latest
            if latest == self._known:
                continue
            # Heard or not: to say it later would tell nobody anything.
            self._known = latest
            try:
                await announcements.announce(latest)
            except OnesearchError:
                self._messages["failed"] += 1
            else:
                self._messages["sent"] += 1
