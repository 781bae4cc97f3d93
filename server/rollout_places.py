"""The two places for generations in memory: one is live; beside it is one that was loaded ahead,
the challenger, or what was live before and is kept for a rollback."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from models.registry.leases import LEASE_TTL_S
from server.generation import Generation
from server.rollout_loading import Loaded, Loading

KEEP_S = 600.0
"""How long the generation before the live one stays in memory."""
RENEW_S = LEASE_TTL_S / 3


class Places:
    """Of one server. Used on one event loop, changed by one at a time."""

    def __init__(self, live: Loaded, loading: Loading) -> None:
        self.live = live
        self.beside: Loaded | None = None
        self._loading = loading
        self._ending: set[asyncio.Task[None]] = set()
        self._renewed = time.monotonic()

    @property
    def loaded(self) -> list[Loaded]:
        """What is in memory, the live one first."""
        return [self.live] if self.beside is None else [self.live, self.beside]

    def find(self, version: str) -> Loaded | None:
        """One that is in memory."""
        return next((one for one in self.loaded if one.version == version), None)

    async def bring(self, version: str) -> Loaded:
        """Load one beside the live one, in place of what is there. Errors as of `Loading.load`."""
        await self.clear()
        self.beside = loaded = await self._loading.load(version, self.live)
        return loaded

    def stay(self, loaded: Loaded, generation: Generation) -> None:
        """What is beside stays there until somebody says otherwise, as `generation`."""
        self.beside = replace(loaded, generation=generation, drained=None, kept_until=float("inf"))

    def may_go(self, drained: asyncio.Event) -> None:
        """What is beside is needed no more, and kept for a while. `drained`: when its last search
        has ended."""
        if self.beside is not None:
            kept_until = time.monotonic() + KEEP_S
            self.beside = replace(self.beside, drained=drained, kept_until=kept_until)

    def succeed(self, loaded: Loaded, generation: Generation, drained: asyncio.Event) -> None:
        """`loaded` is live, as `generation`; what was live before is kept for a rollback, if it can
        be and fits."""
        old = replace(self.live, drained=drained, was_live=True)
        self.live = replace(loaded, generation=generation, drained=None, kept_until=float("inf"))
        self.beside = None
        shares = old.generation.source is generation.source
        whole = old.generation.runner is not None
        kept = (shares or old.generation.catalogue is None) and whole
        if kept and self._loading.has_room_for(old):
            self.beside = replace(old, kept_until=time.monotonic() + KEEP_S)
            return
        task = asyncio.get_running_loop().create_task(self._loading.end(old, self.live))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    @property
    def is_overdue(self) -> bool:
        """Whether `tidy` has something to do."""
        now = time.monotonic()
        overstays = self.beside is not None and now >= self.beside.kept_until
        return overstays or now >= self._renewed + RENEW_S

    async def tidy(self) -> None:
        """Let go of what was kept long enough, and renew the pins."""
        now = time.monotonic()
        if self.beside is not None and now >= self.beside.kept_until:
            await self.clear()
        if now >= self._renewed + RENEW_S:
            self._renewed = now
            self.live = await self._loading.renew(self.live)
            if self.beside is not None:
                self.beside = await self._loading.renew(self.beside)

    async def clear(self) -> None:
        """Let go of what is beside."""
        beside, self.beside = self.beside, None
        if beside is not None:
            await self._loading.end(beside, self.live)

    async def close(self) -> None:
        """Release the pins. The pipeline closes what is live."""
        for task in self._ending:
            task.cancel()
        await self.clear()
        await self._loading.release(self.live)
