"""How tests ask a server that follows a registry."""

import time
from collections.abc import Callable
from typing import Any

import httpx

PATIENCE_S = 60.0
QUERY = {"query": "red oak desk", "limit": 36, "explain": True}


def ask(client: httpx.Client, version: str, what: str, **body: Any) -> httpx.Response:
    return client.post(f"/admin/generations/{version}:{what}", json=body)


def live(client: httpx.Client) -> dict[str, Any]:
    return {"canary": None} | client.get("/readyz").json()["generation"]


def until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)
