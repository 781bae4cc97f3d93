"""Nobody's work: a search ends when its client closes the connection."""

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest


def send(url: httpx.URL, *, link: bool) -> socket.socket:
    """A search as raw HTTP on a connection of its own."""
    body = json.dumps({"query": "x", "timeout_ms": 20_000}).encode()
    head = (
        b"GET /v1/search?query=x&timeout_ms=20000 HTTP/1.1\r\nhost: x\r\n\r\n"
        if link
        else b"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    connection = socket.create_connection((url.host, url.port or 80), 10)
    connection.sendall(head)
    return connection


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def metric(client: httpx.Client, name: str) -> float:
    match = re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(match.group(1)) if match else 0.0


@pytest.mark.parametrize("link", [True, False])
def test_a_closed_connection_cancels_its_search_and_frees_its_place(
    stub_client: Any, stub: Any, log_lines: Any, link: bool
):
    started: list[Any] = []
    cancelled: list[Any] = []

    async def slow(request: Any) -> None:
        started.append(request)
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.append(request)
            raise

    stub.answer = slow
    client = stub_client(concurrent_requests=2)
    connections = [send(client.base_url, link=link) for _ in range(2)]
    wait_for(lambda: len(started) == 2)
    assert client.post("/v1/search", json={"query": "x"}).status_code == 503
    assert not cancelled
    for connection in connections:
        connection.close()
    wait_for(lambda: len(cancelled) == 2)
    wait_for(lambda: metric(client, "onesearch_in_flight") == 0)
    stub.answer = None
    assert client.post("/v1/search", json={"query": "x"}).status_code == 200
    assert log_lines.getvalue().count('"status":499') == 2
    assert "traceback" not in log_lines.getvalue().lower()


def test_the_engine_drops_what_nobody_waits_for(tiny: httpx.Client):
    def cancelled() -> float:
        return metric(tiny, "onesearch_engine_cancelled_total")

    before = cancelled()
    body = json.dumps({"query": "red oak desk", "beam_width": 1024}).encode()
    head = (
        b"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    where = (tiny.base_url.host, tiny.base_url.port or 80)
    until = time.monotonic() + 60
    while cancelled() == before:
        assert time.monotonic() < until
        connections = [socket.create_connection(where, 10) for _ in range(60)]
        for connection in connections:
            connection.sendall(head)
        for connection in connections:
            connection.close()
    wait_for(lambda: metric(tiny, "onesearch_in_flight") == 0)
    assert tiny.post("/v1/search", json={"query": "red oak desk"}).json()["hits"]
