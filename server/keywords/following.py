"""A worker's generator follows the registry: keywords are about the catalogue that is served.

Only where the registry chose the snapshot, as it does for gateways. Its aliases are looked at every
POLL_S. Where the champion has another snapshot, a generator is opened on it beside the one that
works, the worker goes over to it, and the one before is closed when its last batch has ended. A
champion that cannot be opened is told once and tried again; the worker goes on with what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from index.errors import OnesearchError
from models.registry.registry import Registry
from server.keywords.generator import KeywordGenerator
from server.keywords.worker import Worker

POLL_S = 2.0

Opened = Callable[[Path], AbstractAsyncContextManager[KeywordGenerator]]


async def follow(
    registry: Registry,
    snapshot: Path,
    opened: Opened,
    present: AsyncExitStack,
    worker: Worker,
    log: FilteringBoundLogger,
) -> None:
    """Hand the worker a generator for each champion's snapshot after `snapshot`; until cancelled.

    `opened`: a generator on a snapshot, as a context. `present` holds the context of the one that
    works; so it does at the end.
    """
    problem = ""
    while True:
        await asyncio.sleep(POLL_S)
        stack = AsyncExitStack()
        try:
            champion = await asyncio.to_thread(_champion, registry)
            if champion == snapshot:
                continue
            generator = await stack.enter_async_context(opened(champion))
        except (OnesearchError, OSError) as error:
            if str(error) != problem:
                problem = str(error)
                log.warning("the champion's catalogue cannot be followed", detail=problem)
            continue
        before = present.pop_all()
        present.push_async_exit(stack)
        snapshot, problem = champion, ""
        log.info("catalogue followed", generator=generator.name, version=generator.version)
        try:
            await worker.replace(generator)
        finally:
            await before.aclose()


def _champion(registry: Registry) -> Path:
    return registry.choose(verify=False).snapshot
