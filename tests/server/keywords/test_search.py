"""Searches over HTTP with keywords on: what is answered, what the model reads, what is queued."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.context import InMemoryUserContexts
from server.generation import Generations
from server.keywords.jobs import Priority
from server.keywords.keywords import Analysis, Keywords, Source, keywords_to_json
from server.keywords.queue import KeywordQueue
from server.keywords.store import KeywordStore
from server.logs import make_logger
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer
from server.redis.keys import Keys
from server.settings import Settings
from server.start import start_keywords

VERSION = "v1"


@pytest.fixture
def redis_now(redis_server: EmbeddedServer) -> Callable[..., Any]:
    """`redis_now(work)` → what `work(connection)` returns, from outside of the gateway."""

    def run(work: Callable[[RedisConnection], Awaitable[Any]]) -> Any:
        async def go() -> Any:
            redis = RedisConnection(redis_server.url, 1.0)
            try:
                return await work(redis)
            finally:
                await redis.close()

        return asyncio.run(go())

    return run


@pytest.fixture
def keyword_client(
    generation: Any,
    stub_engine: Any,
    start_server: Callable[[Any], httpx.Client],
    redis_server: EmbeddedServer,
    redis_now: Callable[..., Any],
) -> Callable[..., httpx.Client]:
    """`keyword_client(**settings)` → a gateway over the tiny generation, with empty Redis."""
    redis_now(lambda redis: redis.command("FLUSHALL"))

    def start(**changes: Any) -> httpx.Client:
        settings = Settings(
            **{"redis_url": redis_server.url, "keyword_budget_ms": 500, "keywords": "rag"} | changes
        )
        metrics, log = Metrics(), make_logger("error", io.StringIO())
        pipeline = Pipeline(
            Generations(generation),
            stub_engine,
            InMemoryUserContexts(10, 10),
            settings,
            metrics,
            log,
            asyncio.run(start_keywords(settings, metrics, log)),
        )
        return start_server(create_app(pipeline, settings, metrics=metrics, log=log))

    return start


def search(client: httpx.Client, query: str, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/search", json={"query": query, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def settled(client: httpx.Client, query: str, *states: str) -> dict[str, Any]:
    """Search until the keywords' state is one of these."""
    until = time.monotonic() + 60
    while (answer := search(client, query))["keywords"]["state"] not in states:
        assert time.monotonic() < until, answer["keywords"]
        time.sleep(0.02)
    return answer


async def store(redis: RedisConnection, query: str, *terms: str, excluded: tuple[str, ...]) -> None:
    keys = Keys()
    made = Keywords(query, terms, excluded, Analysis(), Source("null"), time.time())
    await redis.command("SET", keys.keywords(VERSION, query, None), keywords_to_json(made))
    await KeywordStore(redis, keys).announce(VERSION)


def test_without_keywords_nothing_is_said_of_them(degraded_client: Any):
    client = degraded_client()
    assert search(client, "desk")["keywords"] is None
    assert "onesearch_keyword" not in client.get("/metrics").text


@pytest.mark.parametrize(("mode", "in_prompt"), [("rag", True), ("student", False)])
def test_a_hit_is_told_and_in_rag_mode_the_model_reads_it(
    keyword_client: Any, redis_now: Any, stub_engine: Any, mode: str, in_prompt: bool
):
    redis_now(lambda redis: store(redis, "desk", "oak", "office", excluded=("glass",)))
    client = keyword_client(keywords=mode)
    answer = settled(client, "Desk", "hit")
    assert answer["keywords"] == {
        "state": "hit",
        "terms": ["oak", "office"],
        "excluded": ["glass"],
        "personalised": False,
        "in_prompt": in_prompt,
    }
    assert "keywords" in answer["timings_ms"]
    # The first search came before the version was known, so it had no keywords.
    lengths = [len(prompt.token_ids) for prompt in stub_engine.prompts]
    assert (lengths[-1] > lengths[0]) is in_prompt


def test_a_miss_is_queued_once_and_searches_go_on(keyword_client: Any, redis_now: Any):
    redis_now(lambda redis: store(redis, "other", "x", excluded=()))
    client = keyword_client()
    for _ in range(3):
        answer = settled(client, "desk", "miss")
        assert [answer["degraded"], len(answer["hits"])] == [[], 10]

    async def queued(redis: RedisConnection) -> list[str]:
        taken = await KeywordQueue(redis, Keys(), consumer="test").take(10)
        return [held.job.request.query for held in taken.jobs if held.job.priority is Priority.LIVE]

    assert redis_now(queued) == ["desk"]
    metrics = client.get("/metrics").text
    assert 'onesearch_keyword_misses_total{outcome="queued"} 1.0' in metrics


def test_items_of_a_user_make_a_personal_job_with_their_titles(keyword_client: Any, redis_now: Any):
    redis_now(lambda redis: store(redis, "desk", "oak", excluded=()))
    client = keyword_client()
    settled(client, "desk", "hit")
    found = search(client, "desk", user_id="anna", history=["i0", "nope"])
    assert found["keywords"]["state"] == "hit"

    async def queued(redis: RedisConnection) -> Any:
        queue = KeywordQueue(redis, Keys(), consumer="test")
        return ((await queue.take(5)) or await queue.wait(0.5)).jobs

    [held] = redis_now(queued)
    assert [held.job.request.user_id, held.job.request.clicked_titles] == [
        *("anna", ("red oak desk",))
    ]


def test_without_redis_searches_are_answered_and_say_so(keyword_client: Any):
    client = keyword_client(redis_url="unix:///nowhere/redis.sock")
    answer = settled(client, "desk", "unavailable")
    assert answer["degraded"] == ["keywords_unavailable"]
    assert len(answer["hits"]) == 10
    metrics = client.get("/metrics").text
    assert 'onesearch_degraded_total{reason="keywords_unavailable"} 0.0' not in metrics
