"""Generators by their settings."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from index.errors import ConfigError
from server.keywords.generators import open_generator
from server.keywords.keywords import KeywordRequest, Keywords
from server.keywords.llm import LlmGenerator
from server.keywords.store import KeywordStore
from server.redis.connection import RedisConnection
from server.redis.keys import Keys
from server.settings import Settings

SERVICE = {"keyword_llm_url": "http://127.0.0.1:1/v1", "keyword_llm_model": "m"}


def opened(snapshot: Path | None, *queries: str, **changes: Any) -> tuple[Any, list[Any]]:
    """The generator of some settings, closed again, and its answers."""

    async def go() -> tuple[Any, list[Any]]:
        redis = RedisConnection("unix:///nowhere/redis.sock", 0.2)
        store = KeywordStore(redis, Keys())
        async with open_generator(Settings(**changes), snapshot, store) as generator:
            answers = await generator.generate([KeywordRequest(query) for query in queries])
        await redis.close()
        return generator, answers

    return asyncio.run(go())


def test_each_kind_is_opened_by_its_name(tiny_pair: Any):
    for kind, snapshot in (("null", None), ("statistical", tiny_pair.snapshot)):
        generator, [answer] = opened(snapshot, "red oak desk", keyword_generator=kind)
        assert generator.name == kind
        assert isinstance(answer, Keywords)
        assert answer.source.generator == kind


def test_a_language_model_needs_to_know_where_it_is_and_may_go_without_a_catalogue(tiny_pair: Any):
    for snapshot in (None, tiny_pair.snapshot):
        generator, _ = opened(snapshot, keyword_generator="llm", **SERVICE)
        assert isinstance(generator, LlmGenerator)
    with pytest.raises(ConfigError, match="ONESEARCH_KEYWORD_LLM_URL"):
        opened(None, keyword_generator="llm", keyword_llm_model="m")


def test_the_statistical_one_needs_a_snapshot():
    with pytest.raises(ConfigError, match="--snapshot"):
        opened(None, keyword_generator="statistical")
