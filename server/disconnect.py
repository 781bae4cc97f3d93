"""Work ends with the connection of the client that waits for it.

The request's body must have been read, or be in what `receive` says first: after it, all that it
can still say is that the client has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

WATCH_AFTER_S = 0.003
CLIENT_GONE_STATUS = 499
"""In the log and the metrics; nobody is there to receive it."""
Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` returns or raises. When the client goes first: cancels it, raises ClientGone.

    Work that is done within WATCH_AFTER_S is not watched: to look would cost more than it saves."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    cancelled_before = task.cancelling()
    watching: asyncio.Task[None] | None = None
    gone = False

    def ended(_: object) -> None:
        nonlocal gone
        if watching is not None and not watching.cancelled():
            gone = True
            task.cancel()

    def begin() -> None:
        nonlocal watching
        watching = loop.create_task(_until_gone(receive))
        watching.add_done_callback(ended)

    beginning = loop.call_later(WATCH_AFTER_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        # Who else cancelled, such as a deadline, is heard.
        if gone and task.uncancel() <= cancelled_before:
            raise ClientGone from None
        raise
    finally:
        beginning.cancel()
        if watching is not None:
            watching.remove_done_callback(ended)
            watching.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
