"""How tests ask a server that follows a registry."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from models.registry.registry import Registry

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


@contextmanager
def damaged(registry: Registry, version: str) -> Iterator[str]:
    """A generation's checkpoint with a file that is not what it was; yields where that is."""
    _, checkpoint = registry.paths(registry.record(version))
    config = checkpoint / "config.json"
    whole = config.read_bytes()
    config.write_bytes(b" " * len(whole))
    yield f"checkpoints/{checkpoint.name}/config.json"
    config.write_bytes(whole)
