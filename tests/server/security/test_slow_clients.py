"""Slow senders, slow readers, floods of heads and of connections, over real sockets."""

from __future__ import annotations

import asyncio
import io
import logging
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from server.connection_guard import ConnectionGuard, allow_files
from server.connections import HEAD_BYTES, server_config
from server.logs import make_logger

TIMEOUT_S = 0.5
PATIENCE_S = 60.0
SEARCH = {"query": "desk"}


def drip(connection: socket.socket, head: bytes) -> None:
    """Send a head, then a byte of it again and again, until the server has had enough."""
    until = time.monotonic() + PATIENCE_S
    connection.sendall(head)
    connection.settimeout(0.05)
    while time.monotonic() < until:
        try:
            connection.sendall(b"a" if head else b"")
            if connection.recv(65536) == b"":
                return
        except TimeoutError:
            continue
        except ConnectionError:
            return
    pytest.fail("the connection is still open")


@pytest.mark.parametrize(
    "head",
    [b"", b"GET /", b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: "],
    ids=["nothing", "a path", "a header"],
)
def test_slow_heads_are_cut_and_others_are_answered(
    stub_client: Any, connect: Any, logged: Any, head: bytes
):
    client = stub_client(head_timeout_s=TIMEOUT_S)
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(client)) for _ in range(20)]
        for one in slow[1:]:
            one.sendall(head)
        assert client.post("/v1/search", json=SEARCH).status_code == 200
        drip(slow[0], head)
        assert client.post("/v1/search", json=SEARCH).status_code == 200
        for one in slow[1:]:
            one.settimeout(PATIENCE_S)
            with suppress(ConnectionError):
                assert one.recv(65536) == b""
    assert logged("connections cut")["slow"] >= 1
    assert 'onesearch_connections_cut_total{reason="slow"} 20.0' in client.get("/metrics").text


def test_the_second_head_of_a_connection_has_no_more_time(
    stub_client: Any, connect: Any, logged: Any
):
    client = stub_client(head_timeout_s=TIMEOUT_S)
    with connect(client) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        drip(connection, b"GET /livez HTTP/1.1\r\nhost: x\r\nx: ")
    assert logged("connections cut")["slow"] >= 1


def test_the_rest_of_a_refused_body_is_not_waited_for(stub_client: Any, connect: Any, logged: Any):
    client = stub_client(head_timeout_s=TIMEOUT_S, rate_limit=0.01)
    assert client.post("/v1/search", json=SEARCH).status_code == 200
    with connect(client) as connection:
        head = b"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 429")
        drip(connection, b"{")
    assert logged("connections cut")["slow"] >= 1


def test_a_request_that_takes_long_is_no_slow_client(stub_client: Any, stub: Any, log_lines: Any):
    async def slow(_: Any) -> None:
        await asyncio.sleep(3 * TIMEOUT_S)

    stub.answer = slow
    client = stub_client(head_timeout_s=TIMEOUT_S, timeout_s=30)
    assert client.post("/v1/search", json=SEARCH).status_code == 200
    assert "connections cut" not in log_lines.getvalue()


def test_idle_connections_give_way(stub_client: Any, connect: Any, logged: Any):
    """More connections than there may be: the longest waiting go, requests are answered."""
    client = stub_client(connections=8)
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(client)) for _ in range(30)]
        for one in idle:
            with suppress(ConnectionError):
                one.sendall(b"GET /livez HTTP/1.1\r\nx: ")
        for _ in range(5):
            assert client.post("/v1/search", json=SEARCH).status_code == 200
        assert idle[0].recv(1) == b"" or pytest.fail("the first one is still open")
    assert logged("connections cut")["crowded"] >= 22


def test_who_does_not_read_is_cut(start_server: Any, log_lines: io.StringIO, connect: Any):
    """An answer larger than all buffers, and a client that reads none of it."""

    async def endless() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"a" * 65536

    async def answer(_: Request) -> StreamingResponse:
        return StreamingResponse(endless())

    app = Starlette(routes=[Route("/", answer)])
    log = make_logger("debug", log_lines)
    app.state.connection_guard = ConnectionGuard(100, TIMEOUT_S, log=log)
    with connect(start_server(app)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        until = time.monotonic() + PATIENCE_S
        while '"blocked":1' not in log_lines.getvalue():
            assert time.monotonic() < until
            time.sleep(0.02)


def test_floods_of_headers_are_refused_and_told(
    stub_client: Any, talk: Any, caplog: pytest.LogCaptureFixture
):
    client = stub_client()
    caplog.set_level(logging.WARNING, "uvicorn.error")
    flood = b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * (HEAD_BYTES // 4) + b"\r\n"
    assert talk(client, [flood]).startswith(b"HTTP/1.1 400")
    assert caplog.records[0].name == "uvicorn.error"
    assert client.get("/livez").status_code == 200


def test_the_guard_is_part_of_every_connection():
    config = server_config(None, 1.0, ConnectionGuard(8, 1.0), ("192.0.2.0/24",), 90)
    assert isinstance(config, uvicorn.Config)
    assert config.forwarded_allow_ips == ["192.0.2.0/24"]
    assert config.timeout_keep_alive == 90
    assert config.proxy_headers
    assert not server_config(None, 1.0).proxy_headers


def test_files_are_allowed_as_far_as_the_system_does():
    assert allow_files(16) >= 16
