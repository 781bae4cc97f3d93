"""Gateways with API keys over real HTTP, and what their log says."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from server.keys import Key, KeyScope, make_key
from server.keys_file import change_keys

PATIENCE_S = 30.0


class Keys(NamedTuple):
    """A keys file and the texts of its keys, one for each scope."""

    file: Path
    texts: dict[str, str]

    def headers(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.texts[name]}"}


@pytest.fixture
def add_key(tmp_path: Path) -> Callable[..., tuple[str, Key]]:
    """`add_key(name, *scopes, **facts)` → its text and what is kept of it, in keys.json."""

    def add(name: str, *scopes: KeyScope, **facts: Any) -> tuple[str, Key]:
        text, key = make_key(name, scopes, facts.pop("now", time.time()), **facts)
        change_keys(tmp_path / "keys.json", lambda known: (*known, key))
        return text, key

    return add


@pytest.fixture
def keys(add_key: Callable[..., tuple[str, Key]], tmp_path: Path) -> Keys:
    scopes: tuple[KeyScope, ...] = ("search", "events", "ingest", "admin", "metrics")
    texts = {scope: add_key(f"the-{scope}", scope)[0] for scope in scopes}
    return Keys(tmp_path / "keys.json", texts)


@pytest.fixture
def logged(log_lines: Any) -> Callable[..., dict[str, Any]]:
    """`logged(event, **facts)` → the log's first such line, as soon as it is there."""

    def find(event: str, **facts: Any) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_S
        while True:
            lines = [json.loads(line) for line in log_lines.getvalue().splitlines()]
            found = [
                line for line in lines if line["event"] == event and facts.items() <= line.items()
            ]
            if found:
                return found[0]
            assert time.monotonic() < until, log_lines.getvalue()[-3000:]
            time.sleep(0.01)

    return find


@pytest.fixture
def connect() -> Callable[[httpx.Client], socket.socket]:
    """`connect(client)` → a connection of one's own to a client's server."""

    def open_one(client: httpx.Client) -> socket.socket:
        url = client.base_url
        return socket.create_connection((url.host, url.port or 80), PATIENCE_S)

    return open_one


@pytest.fixture
def talk(
    connect: Callable[[httpx.Client], socket.socket],
) -> Callable[[httpx.Client, Sequence[bytes]], bytes]:
    """`talk(client, parts)` → what a server answers to raw bytes, until it closes."""

    def send(client: httpx.Client, parts: Sequence[bytes]) -> bytes:
        with connect(client) as connection:
            answer = b""
            with suppress(ConnectionError):
                for part in parts:
                    connection.sendall(part)
            with suppress(ConnectionError):
                while data := connection.recv(65536):
                    answer += data
            return answer

    return send
