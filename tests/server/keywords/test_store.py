"""Stored answers: lifetimes, versions, damage, what is remembered."""

from collections.abc import Callable
from typing import Any

import pytest

from server.keywords.keywords import Analysis, Keywords, Source, keywords_to_json
from server.keywords.store import KeywordStore, Stored, failure_to_json, stored_from_json, ttl_of
from server.redis.keys import GENERIC_TTL_S, NOTHING_TTL_S, PERSONAL_TTL_S

WithRedis = Callable[..., Any]


def keywords(*terms: str, excluded: tuple[str, ...] = ()) -> Keywords:
    return Keywords("desk", terms, excluded, Analysis(), Source("null"), 1.0)


def test_lifetimes_depend_on_what_was_found_and_for_whom():
    assert ttl_of(keywords("oak"), None) == GENERIC_TTL_S == 7 * 24 * 3600
    assert ttl_of(keywords("oak"), "u") == PERSONAL_TTL_S == 24 * 3600
    assert ttl_of(keywords(excluded=("glass",)), None) == GENERIC_TTL_S
    assert ttl_of(keywords(), None) == ttl_of(keywords(), "u") == NOTHING_TTL_S


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"failed": 3}', b"\xff", b"null"])
def test_what_cannot_be_read_is_nothing(raw: bytes):
    assert stored_from_json(raw) is None


def test_values_survive_json():
    assert stored_from_json(keywords_to_json(keywords("oak"))) == Stored(keywords("oak"))
    assert stored_from_json(failure_to_json("no model")) == Stored(None, "no model")
    assert Stored(keywords()).empty
    assert not Stored(keywords(excluded=("glass",))).empty


def test_answers_are_read_by_version_and_user_and_remembered_for_a_while(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        now = 100.0
        store = KeywordStore(parts.redis, parts.keys, remember_s=10, clock=lambda: now)
        key = parts.keys.keywords
        await parts.redis.command("SET", key("v1", "desk", None), keywords_to_json(keywords("oak")))
        await parts.redis.command("SET", key("v1", "desk", "u"), failure_to_json("no"), "EX", 50)
        assert store.remembered("v1", "desk", None) is None
        personal, generic = await store.read("v1", "desk", ("u", None))
        assert [personal, generic] == [Stored(None, "no"), Stored(keywords("oak"))]
        assert await store.read("v2", "desk", (None,)) == [None]
        assert await store.read("v1", "desk", ("somebody else",)) == [None]
        await parts.redis.command("FLUSHALL")
        now = 109.0
        assert store.remembered("v1", "desk", None) == Stored(keywords("oak"))
        now = 111.0
        assert store.remembered("v1", "desk", None) is None

    with_redis(work)


def test_a_damaged_value_is_deleted_so_that_it_is_made_again(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        key = parts.keys.keywords("v1", "desk", None)
        await parts.redis.command("SET", key, b"{damaged")
        assert await parts.store.read("v1", "desk", (None,)) == [None]
        assert await parts.redis.command("EXISTS", key) == 0

    with_redis(work)


def test_the_version_and_lifetimes_are_told(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        store = parts.store
        assert await store.version() is None
        await store.announce("v1")
        assert await store.version() == "v1"
        assert await store.lifetime_s("v1", "desk", None) is None
        await parts.redis.command("SET", parts.keys.keywords("v1", "desk", None), b"x", "EX", 50)
        assert 48 < await store.lifetime_s("v1", "desk", None) <= 50

    with_redis(work)


def test_keys_hold_no_text_of_queries_and_users(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        key = parts.keys.keywords("v1", "secret query" * 50, "a user")
        assert "secret" not in key
        assert "user" not in key.removeprefix("onesearch:1:keywords:personal:")
        assert len(key) < 120

    with_redis(work)
