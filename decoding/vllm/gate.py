"""Who may search now: as many rows at a time as the engine holds, first come, first served, and
nobody while weights are replaced.

Used on one event loop; what is counted may be read from any thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from decoding.errors import EngineClosed


@dataclass(slots=True, eq=False)
class _Waiting:
    rows: int
    prompts: int
    opened: asyncio.Future[None]


class Gate:
    """`budget_rows`: rows of all running searches; a larger search runs alone."""

    def __init__(self, budget_rows: int) -> None:
        self.budget_rows = budget_rows
        self.running_rows = 0
        self.running_prompts = 0
        self._running = 0
        self._queue: deque[_Waiting] = deque()
        self._fences = 0
        self._fenced = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def queued_rows(self) -> int:
        return sum(one.rows for one in list(self._queue))

    @property
    def queued_prompts(self) -> int:
        return sum(one.prompts for one in list(self._queue))

    @asynccontextmanager
    async def search(self, rows: int, prompts: int) -> AsyncGenerator[None, None]:
        """Wait for room, then be running until the block ends. Raises EngineClosed."""
        await self._enter(rows, prompts)
        try:
            yield
        finally:
            self._leave(rows, prompts)

    @asynccontextmanager
    async def fence(self) -> AsyncGenerator[None, None]:
        """Wait until running searches end; no other begins until the block ends."""
        self._fences += 1
        try:
            async with self._fenced:
                await self._idle.wait()
                yield
        finally:
            self._fences -= 1
            self._let_in()

    async def close(self) -> None:
        """Refuse searches, end those that wait, and wait for those that run."""
        self._closed = True
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.opened.done():
                waiting.opened.set_exception(
                    EngineClosed("the engine was closed before the search began")
                )
        await self._idle.wait()

    async def _enter(self, rows: int, prompts: int) -> None:
        if self._closed:
            raise EngineClosed("the engine is closed")
        if not self._queue and self._has_room(rows):
            self._take(rows, prompts)
            return
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(rows, prompts, opened)
        self._queue.append(waiting)
        try:
            await opened
        except asyncio.CancelledError:
            if waiting in self._queue:
                self._queue.remove(waiting)
            elif opened.done() and not opened.cancelled() and opened.exception() is None:
                # It was let in at the very moment when nobody waited any more.
                self._leave(rows, prompts)
            self._let_in()
            raise

    def _has_room(self, rows: int) -> bool:
        fits = not self._running or self.running_rows + rows <= self.budget_rows
        return fits and not self._fences

    def _take(self, rows: int, prompts: int) -> None:
        self._running += 1
        self.running_rows += rows
        self.running_prompts += prompts
        self._idle.clear()

    def _leave(self, rows: int, prompts: int) -> None:
        self._running -= 1
        self.running_rows -= rows
        self.running_prompts -= prompts
        if not self._running:
            self._idle.set()
        self._let_in()

    def _let_in(self) -> None:
        while self._queue and (self._queue[0].opened.done() or self._has_room(self._queue[0].rows)):
            waiting = self._queue.popleft()
            if not waiting.opened.done():
                self._take(waiting.rows, waiting.prompts)
                waiting.opened.set_result(None)
