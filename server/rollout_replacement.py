"""Weights replaced in place, where two sets of them do not fit into memory.

    door shut → old weights dropped → new ones opened, golden queries, decision → flip → door open
                                    ↘ what fails: the old ones opened again → door open

While the door is shut, retrieval answers every search and says so (`engine_replaced`). Where not
even the old weights can be opened again it stays shut, and `refill` is tried later.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

from models.registry.aliases import Aliases
from server.generation import Generation
from server.pipeline import Pipeline
from server.rollout_loading import Loaded, Loading


class Replacement:
    """One replacement of what is live."""

    def __init__(self, loading: Loading, pipeline: Pipeline, live: Loaded) -> None:
        self._loading = loading
        self._pipeline = pipeline
        self._live = live

    async def replace(
        self, version: str, decide: Callable[[], Aliases] | None
    ) -> tuple[Loaded, asyncio.Event, Aliases | None]:
        """The generation that is live now, when the last search has left the one before, and what
        was decided. Raises what loading or deciding raises; the old generation is live then."""
        loaded: Loaded | None = None
        state: Aliases | None = None

        async def opened() -> Generation:
            nonlocal loaded, state
            # Nothing refers to the dropped weights, but what does may be waiting for the collector.
            await asyncio.to_thread(gc.collect)
            loaded = await self._loading.load(version, self._live)
            if decide is not None:
                state = await asyncio.to_thread(decide)
            return loaded.generation

        async def reopened() -> Generation:
            nonlocal loaded
            begun, loaded = loaded, None
            if begun is not None:
                await self._loading.end(begun, self._live)
            del begun
            return await self._open_live()

        drained = await self._pipeline.replace(opened, reopened)
        assert loaded is not None
        return loaded, drained, state

    async def refill(self) -> None:
        """Give the live generation its weights again."""
        await self._pipeline.refill(self._open_live)

    async def _open_live(self) -> Generation:
        await asyncio.to_thread(gc.collect)
        return await asyncio.to_thread(self._loading.with_weights_again, self._live)
