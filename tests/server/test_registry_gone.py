"""The registry's directory goes away under a running server, and comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx

from models.registry import promotion

WAITING_S = 60.0


def until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + WAITING_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


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
