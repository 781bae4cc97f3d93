"""A worker's generator follows the registry's champion."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from index.errors import ArtifactError
from models.registry import promotion
from server.cli.worker import followed_registry, work
from server.keywords import following
from server.keywords.following import follow
from server.keywords.generator import GenerationError, NullGenerator
from server.keywords.jobs import Priority
from server.keywords.keywords import KeywordRequest, Keywords
from server.logs import make_logger
from server.settings import Settings
from tests.server.keywords.test_worker import worker

WAIT_S = 60.0


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await true():  # noqa: ASYNC110  other tasks and Redis set no event
            await asyncio.sleep(0.05)


async def made(parts: Any, query: str) -> str:
    """Have a query's keywords made; the version that they are stored under."""
    await parts.queue.enter([KeywordRequest(query)], Priority.LIVE, None)
    found = ""

    async def stored() -> bool:
        nonlocal found
        found = await parts.store.version() or ""
        [answer] = await parts.store.read(found, query, (None,))
        return answer is not None

    await until(stored)
    return found


def test_a_promotion_is_followed_without_a_restart(
    with_redis: Any, redis_server: Any, published: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(following, "POLL_S", 0.05)
    settings = Settings(
        registry=published.path,
        redis_url=redis_server.url,
        keyword_generator="statistical",
        keyword_lease_s=1.0,
        log_level="error",
    )

    async def go(parts: Any) -> None:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            working = group.create_task(work(settings, False, None, 0.0, stop))
            first = await made(parts, "red oak desk")
            # Other weights, the same catalogue: the keywords stand.
            promotion.promote(published.registry, published.second)
            assert await made(parts, "blue oak desk") == first
            promotion.promote(published.registry, published.foreign)

            async def other() -> bool:
                return await parts.store.version() != first

            await until(other)
            second = await made(parts, "green oak desk")
            assert second != first
            stop.set()
        assert working.result()["version"] == second

    with_redis(go)


class Slow(NullGenerator):
    """A generator of a version of its own that waits until it is let go on."""

    def __init__(self, version: str) -> None:
        super().__init__()
        self._version = version
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    @property
    def version(self) -> str:
        return self._version

    async def generate(
        self, requests: Sequence[KeywordRequest]
    ) -> list[Keywords | GenerationError]:
        self.begun.set()
        await self.go_on.wait()
        return await super().generate(requests)


def test_a_batch_ends_under_the_version_that_it_began_with(with_redis: Any):
    async def go(parts: Any) -> None:
        old, new = Slow("old"), Slow("new")
        new.go_on.set()
        one, stop = worker(parts, old, until_empty=False, concurrency=2), asyncio.Event()
        await parts.queue.enter([KeywordRequest("x")], Priority.LIVE, None)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(one.run(stop))
            await asyncio.wait_for(old.begun.wait(), WAIT_S)
            replacing = group.create_task(one.replace(new))
            await parts.queue.enter([KeywordRequest("y")], Priority.LIVE, None)
            await asyncio.wait_for(new.begun.wait(), WAIT_S)
            assert not replacing.done()
            old.go_on.set()
            await asyncio.wait_for(replacing, WAIT_S)

            async def announced() -> bool:
                return await parts.store.version() == "new"

            await until(announced)
            stop.set()
            await asyncio.wait_for(running, WAIT_S)
        for version, query, other in (("old", "x", "y"), ("new", "y", "x")):
            [mine] = await parts.store.read(version, query, (None,))
            [none] = await parts.store.read(version, other, (None,))
            assert (mine is not None, none) == (True, None)

    with_redis(go)


def test_a_champion_that_cannot_be_opened_is_told_once_and_tried_again(
    published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(following, "POLL_S", 0.01)
    lines, tries, closed = io.StringIO(), [0], asyncio.Event()

    @asynccontextmanager
    async def opened(_: Path) -> AsyncGenerator[Any, None]:
        tries[0] += 1
        if tries[0] < 4:
            raise ArtifactError("it is damaged")
        yield Slow("new")

    class Replaced:
        async def replace(self, generator: Any) -> None:
            self.version = generator.version

    async def go() -> None:
        one: Any = Replaced()
        async with AsyncExitStack() as present:
            present.callback(closed.set)
            log = make_logger("info", lines)
            work = follow(published.registry, tmp_path, opened, present, one, log)
            task = asyncio.create_task(work)
            # The one before is let go of once the other works.
            await asyncio.wait_for(closed.wait(), WAIT_S)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert one.version == "new"

    asyncio.run(go())
    assert lines.getvalue().count("it is damaged") == 1
    assert lines.getvalue().count("catalogue followed") == 1


def test_what_was_named_is_not_followed(published: Any, tiny_pair: Any, tmp_path: Path):
    assert followed_registry(Settings(registry=published.path)) is not None
    assert followed_registry(Settings(registry=published.path, snapshot=tiny_pair[0])) is None
    assert followed_registry(Settings(champion=tmp_path / "champion.json")) is None
    assert followed_registry(Settings(registry=tmp_path / "none")) is None
