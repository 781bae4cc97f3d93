"""The request path's side: what is known is known at once, nothing is waited for, Redis may go."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from server.keywords import reader as reader_module
from server.keywords.jobs import Priority
from server.keywords.keywords import Analysis, KeywordRequest, Keywords, Source, keywords_to_json
from server.keywords.metrics import ReaderMetrics
from server.keywords.reader import Found, KeywordReader
from server.keywords.store import failure_to_json
from server.logs import make_logger
from server.redis.embedded import EmbeddedServer

WithRedis = Callable[..., Any]
VERSION = "v1"
ANNA = KeywordRequest("desk", "anna", clicked_titles=("oak desk",))


def keywords(*terms: str) -> bytes:
    return keywords_to_json(Keywords("desk", terms, (), Analysis(), Source("null"), 1.0))


@asynccontextmanager
async def reading(
    parts: Any, budget_s: float = 0.5, *, version: str | None = VERSION
) -> AsyncGenerator[tuple[KeywordReader, CollectorRegistry], None]:
    """A reader that has learned the version, and what it counts."""
    if version is not None:
        await parts.store.announce(version)
    registry = CollectorRegistry()
    log = make_logger("error", io.StringIO())
    counts = ReaderMetrics(registry)
    reader = KeywordReader(parts.redis, parts.store, parts.queue, counts, log, budget_s)
    reader.look_up(KeywordRequest("nothing"))
    await until(lambda: reader.status is not None)
    yield reader, registry
    await reader.close()


async def until(true: Callable[[], bool], longest_s: float = 10) -> None:
    async with asyncio.timeout(longest_s):
        while not true():  # noqa: ASYNC110  what is waited for sets no event
            await asyncio.sleep(0.01)


async def ask(reader: KeywordReader, request: KeywordRequest) -> Found:
    return await reader.found(reader.look_up(request))


async def jobs(parts: Any) -> list[KeywordRequest]:
    return [held.job.request for held in (await parts.queue.take(100)).jobs]


def test_a_hit_is_read_once_and_then_remembered(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        key = parts.keys.keywords(VERSION, "desk", None)
        await parts.redis.command("SET", key, keywords("oak"))
        async with reading(parts) as (reader, registry):
            first = await ask(reader, KeywordRequest("Desk "))
            assert [first.state, first.from_memory] == ["hit", False]
            assert first.keywords is not None
            assert first.keywords.terms == ("oak",)
            look_up = reader.look_up(KeywordRequest("desk"))
            assert look_up.known == Found("hit", first.keywords, from_memory=True)
            await reader.found(look_up)
            for source in ("memory", "redis"):
                labels = {"state": "hit", "source": source}
                assert registry.get_sample_value("onesearch_keyword_reads_total", labels) == 1
            assert await jobs(parts) == []

    with_redis(work)


def test_a_miss_enters_the_queue_once_and_is_found_when_it_is_made(
    with_redis: WithRedis, monkeypatch: Any
):
    monkeypatch.setattr(reader_module, "ASKED_S", 0.1)

    async def work(parts: Any) -> None:
        async with reading(parts) as (reader, registry):
            for _ in range(3):
                assert (await ask(reader, KeywordRequest("desk"))).state == "miss"
            await until(lambda: not reader._entering)
            assert await jobs(parts) == [KeywordRequest("desk")]
            await asyncio.sleep(0.15)
            assert (await ask(reader, KeywordRequest("desk"))).state == "miss"
            await until(lambda: not reader._entering)
            entered = {
                outcome: registry.get_sample_value(
                    "onesearch_keyword_misses_total", {"outcome": outcome}
                )
                for outcome in ("queued", "duplicate")
            }
            assert entered == {"queued": 1, "duplicate": 1}
            key = parts.keys.keywords(VERSION, "desk", None)
            await parts.redis.command("SET", key, keywords("oak"))
            await asyncio.sleep(0.15)
            assert (await ask(reader, KeywordRequest("desk"))).state == "hit"

    with_redis(work)


def test_nothing_of_another_version_is_used(with_redis: WithRedis, monkeypatch: Any):
    monkeypatch.setattr(reader_module, "PULSE_S", 0.05)

    async def work(parts: Any) -> None:
        key = parts.keys.keywords
        await parts.redis.command("SET", key("v1", "desk", None), keywords("oak"))
        await parts.redis.command("SET", key("v2", "desk", None), keywords("steel"))
        await parts.redis.command("SET", key("v2", "lamp", None), keywords("brass"))

        async def terms(reader: KeywordReader, query: str) -> tuple[str, ...] | None:
            found = await ask(reader, KeywordRequest(query))
            return None if found.keywords is None else found.keywords.terms

        async with reading(parts) as (reader, _):
            assert await terms(reader, "desk") == ("oak",)
            assert reader.look_up(KeywordRequest("desk")).known is not None
            # Missing in this version, and asked for: the next one has it all the same.
            assert await terms(reader, "lamp") is None
            for version, desk, lamp in (
                ("v2", ("steel",), ("brass",)),
                ("v1", ("oak",), None),
                ("v2", ("steel",), ("brass",)),
            ):
                await parts.store.announce(version)
                await until(lambda version=version: reader.version == version)
                assert await terms(reader, "desk") == desk
                assert await terms(reader, "lamp") == lamp

    with_redis(work)


def test_known_to_have_none_is_no_miss(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        for query, value in (("desk", keywords()), ("lamp", failure_to_json("no"))):
            await parts.redis.command("SET", parts.keys.keywords(VERSION, query, None), value)
        async with reading(parts) as (reader, _):
            for query in ("desk", "lamp"):
                assert (await ask(reader, KeywordRequest(query))).state == "nothing"
            assert await jobs(parts) == []

    with_redis(work)


def test_a_users_own_keywords_come_first_and_are_made_after_the_generic_ones(
    with_redis: WithRedis,
):
    async def work(parts: Any) -> None:
        async with reading(parts) as (reader, _):
            assert (await ask(reader, ANNA)).state == "miss"
            await until(lambda: not reader._entering)
            assert await jobs(parts) == [KeywordRequest("desk")]
        await parts.redis.command("FLUSHALL")
        await parts.redis.command(
            "SET", parts.keys.keywords(VERSION, "desk", None), keywords("oak")
        )
        async with reading(parts) as (reader, _):
            found = await ask(reader, ANNA)
            assert found.keywords is not None
            assert found.keywords.terms == ("oak",)
            await until(lambda: not reader._entering)
            assert await jobs(parts) == [ANNA]
            # While they are made, the generic ones serve, without another round trip.
            assert (await ask(reader, ANNA)).from_memory
        await parts.redis.command(
            "SET", parts.keys.keywords(VERSION, "desk", "anna"), keywords("walnut")
        )
        async with reading(parts) as (reader, _):
            found = await ask(reader, ANNA)
            assert found.keywords is not None
            assert found.keywords.terms == ("walnut",)

    with_redis(work)


def test_before_the_first_worker_misses_wait_for_it(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        async with reading(parts, version=None) as (reader, _):
            assert (await ask(reader, KeywordRequest("desk"))).state == "miss"
            await until(lambda: not reader._entering)
            assert await jobs(parts) == [KeywordRequest("desk")]

    with_redis(work)


def test_a_slow_redis_is_waited_for_no_longer_than_the_budget(
    with_redis: WithRedis, redis_server: EmbeddedServer
):
    async def work(parts: Any) -> None:
        key = parts.keys.keywords(VERSION, "desk", None)
        await parts.redis.command("SET", key, keywords("oak"))
        pid = redis_server.pid
        assert pid is not None
        async with reading(parts, budget_s=0.02) as (reader, _):
            os.kill(pid, signal.SIGSTOP)
            try:
                assert (await ask(reader, KeywordRequest("desk"))).state == "late"
                # What waits for a server that hangs is bounded.
                for number in range(100):
                    reader.look_up(KeywordRequest(f"query {number}"))
                assert len(reader._reads) <= reader_module.MOST_READS
            finally:
                os.kill(pid, signal.SIGCONT)
            # The late answer was not for nothing.
            await until(lambda: not reader._reads)
            found = await ask(reader, KeywordRequest("desk"))
            assert [found.state, found.from_memory] == ["hit", True]

    with_redis(work)


def test_without_redis_searches_are_told_at_once_and_it_is_back_by_itself(
    with_redis: WithRedis, redis_server: EmbeddedServer
):
    async def work(parts: Any) -> None:
        async with reading(parts) as (reader, _):
            pid = redis_server.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            os.kill(pid, signal.SIGKILL)
            states = set[str]()
            async with asyncio.timeout(60):
                while "unavailable" not in states:
                    states.add((await ask(reader, KeywordRequest("desk"))).state)
                    states.add((await ask(reader, KeywordRequest(str(len(states))))).state)
            if reader.away:
                look_up = reader.look_up(KeywordRequest("something else"))
                assert look_up.known == Found("unavailable")
            await until(lambda: not reader.away and reader.status is not None)
            assert (await ask(reader, KeywordRequest("a new one"))).state in ("miss", "late")

    with_redis(work)


def test_a_full_queue_is_counted_and_nothing_else(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        await parts.queue.enter([KeywordRequest("first")], Priority.LIVE, None)
        async with reading(parts) as (reader, registry):
            assert (await ask(reader, KeywordRequest("desk"))).state == "miss"
            await until(lambda: not reader._entering)
            labels = {"outcome": "full"}
            assert registry.get_sample_value("onesearch_keyword_misses_total", labels) == 1

    with_redis(work, limit=1)
