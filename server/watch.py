"""Watches the registry, so that servers converge on a champion that any process promotes.

The registry's aliases are one small file: reading it costs one listing, in a thread. With a poll
every POLL_S several gateways are of one mind soon after a promotion, whoever made it and whether or
not they reach each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from server.rollout import Rollout

POLL_S = 0.5


@asynccontextmanager
async def watching(rollout: Rollout, interval_s: float = POLL_S) -> AsyncGenerator[None, None]:
    """Converge again and again as long as the block lasts."""
    task = asyncio.create_task(_watch(rollout, interval_s))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch(rollout: Rollout, interval_s: float) -> None:
    while True:
        await rollout.converge()
        await asyncio.sleep(interval_s)
