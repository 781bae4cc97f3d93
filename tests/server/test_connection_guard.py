"""Whose time is counted: the client's, not that in which the server itself was held up."""

from __future__ import annotations

import asyncio
import time
from typing import cast

from server.connection_guard import ConnectionGuard, Guarded

TIMEOUT_S = 0.4


class Client:
    """A connection on which nothing more arrives."""

    def __init__(self) -> None:
        self.aborted = asyncio.Event()

    @property
    def transport(self) -> Client:
        return self

    def abort(self) -> None:
        self.aborted.set()


def test_the_servers_own_delay_is_not_its_clients() -> None:
    async def work() -> None:
        guard, client = ConnectionGuard(8, TIMEOUT_S), Client()
        guard.opened(cast(Guarded, client), 1)
        held_up = time.monotonic()
        time.sleep(2 * TIMEOUT_S)  # noqa: ASYNC251  the loop is what is held up
        # The look that was due comes now, before what has arrived is read.
        await asyncio.sleep(0.01)
        assert not client.aborted.is_set()
        async with asyncio.timeout(60):
            await client.aborted.wait()
        assert time.monotonic() - held_up > 2.5 * TIMEOUT_S

    asyncio.run(work())
