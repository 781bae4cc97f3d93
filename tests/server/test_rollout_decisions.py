"""Decisions that cannot be read or followed: the champion serves on, and the server says why."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from models.registry import promotion
from tests.server.followed import PATIENCE_S, QUERY, ask, damaged, live, until


def test_a_champion_that_cannot_be_loaded_is_not_served_and_the_server_says_why(
    published: Any, follow: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("server.rollout_retry.RETRY_S", 0.2)
    client, registry = follow(), published.registry
    with damaged(registry, published.second) as file:
        promotion.promote(registry, published.second, verify=False)
        until(lambda: live(client)["problem"] != "")
        told = live(client)
        assert [told["version"], told["champion"]] == [published.first, published.second]
        assert told["alias"] == "previous"
        assert file in told["problem"]
        assert "onesearch_generation_behind 1.0" in client.get("/metrics").text
        assert client.post("/v1/search", json=QUERY).status_code == 200
    until(lambda: live(client)["version"] == published.second)
    assert live(client)["problem"] == ""


@pytest.mark.parametrize("seen", [True, False])
def test_aliases_that_cannot_be_read_change_nothing_and_are_named(
    published: Any,
    follow: Callable[..., httpx.Client],
    monkeypatch: pytest.MonkeyPatch,
    seen: bool,
):
    """Whether the server had followed the state whose file is damaged, or never saw it."""
    # What is mended is seen without waiting for another try.
    monkeypatch.setattr("server.rollout_retry.RETRY_S", 10 * PATIENCE_S)
    client, registry = follow(), published.registry
    served = published.second if seen else published.first
    if seen:
        assert ask(client, published.second, "promote").status_code == 200
        newest = max(registry.alias_history.revisions())
    else:
        newest = max(registry.alias_history.revisions()) + 1
    file = registry.path / "aliases" / f"{newest:08}.json"
    whole = file.read_bytes() if seen else b""
    file.write_bytes(whole[: len(whole) // 2])
    until(lambda: file.name in live(client)["problem"])
    assert live(client)["version"] == served
    assert str(registry.path) not in live(client)["problem"]
    assert client.post("/v1/search", json=QUERY).status_code == 200
    # The next promotion writes a state that can be read.
    assert ask(client, published.foreign, "promote").status_code == 200
    until(lambda: not live(client)["problem"])
    assert live(client)["version"] == published.foreign
    if seen:
        # Mended, not replaced.
        newer = max(registry.alias_history.revisions())
        file = registry.path / "aliases" / f"{newer:08}.json"
        whole = file.read_bytes()
        file.write_bytes(b"")
        until(lambda: file.name in live(client)["problem"])
        file.write_bytes(whole)
        until(lambda: not live(client)["problem"])
        assert live(client)["version"] == published.foreign


def test_a_registry_that_is_gone_is_named_until_it_is_back(
    published: Any, follow: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("server.rollout_retry.RETRY_S", 10 * PATIENCE_S)
    client, path = follow(), published.registry.path
    away = path.rename(path.with_name("away"))
    until(lambda: "folder is gone" in live(client)["problem"])
    assert live(client)["version"] == published.first
    assert str(path) not in live(client)["problem"]
    assert client.post("/v1/search", json=QUERY).status_code == 200
    assert ask(client, published.second, "promote").status_code >= 400
    assert not path.exists()
    away.rename(path)
    until(lambda: not live(client)["problem"])
    assert ask(client, published.second, "promote").status_code == 200
    assert live(client)["version"] == published.second


def test_searches_go_on_without_the_registry_and_it_is_followed_again(
    follow: Callable[..., httpx.Client], published: Any
):
    client = follow()
    away = published.path.with_name("away")
    published.path.rename(away)
    for number in range(3):
        answer = client.post("/v1/search", json={"query": f"desk {number}"})
        assert answer.status_code == 200 and answer.json()["degraded"] == []
    # The watch looks twice a second; it must outlive what it finds.
    time.sleep(1.5)
    assert client.get("/readyz").status_code == 200
    assert client.post("/v1/search", json={"query": "lamp"}).status_code == 200
    away.rename(published.path)
    promotion.promote(published.registry, published.second)
    until(lambda: client.get("/readyz").json()["generation"]["version"] == published.second)
    assert client.post("/v1/search", json={"query": "lamp"}).status_code == 200
