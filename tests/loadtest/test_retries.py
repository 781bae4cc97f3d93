"""The client's policy for asking again, against a real HTTP server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from loadtest.retries import RetryingClient, RetryPolicy

QUICK = RetryPolicy(first_wait_s=0.001)
CLOSED = 0


class Service(ThreadingHTTPServer):
    """Answers with what `turns` says, one after the other; the last one for ever."""

    turns: list[int]
    asked = 0

    def turn(self) -> int:
        self.asked += 1
        return self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.turn()  # pyright: ignore[reportAttributeAccessIssue]
        if status == CLOSED:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def service() -> Generator[Service, None, None]:
    with Service(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def search(service: Service, policy: RetryPolicy = QUICK, searches: int = 1) -> list[int]:
    async def run() -> list[int]:
        async with httpx.AsyncClient() as client:
            retrying = RetryingClient(client, policy)
            url = f"http://127.0.0.1:{service.server_port}/v1/search"
            answers = [await retrying.search(url, {"query": "x"}, 30) for _ in range(searches)]
            return [answer.status_code for answer in answers]

    return asyncio.run(run())


@pytest.mark.parametrize("first", [CLOSED, 502, 503, 504])
def test_a_search_is_sent_again(service: Service, first: int):
    service.turns = [first, 200]
    assert search(service) == [200]
    assert service.asked == 2


@pytest.mark.parametrize("status", [200, 400, 404, 429, 500])
def test_other_answers_are_answers(service: Service, status: int):
    service.turns = [status]
    assert search(service) == [status]
    assert service.asked == 1


def test_attempts_are_counted(service: Service):
    service.turns = [503]
    assert search(service) == [503]
    assert service.asked == QUICK.attempts


def test_a_connection_that_is_always_closed_is_an_error(service: Service):
    service.turns = [CLOSED]
    with pytest.raises(httpx.RemoteProtocolError):
        search(service)
    assert service.asked == QUICK.attempts


def test_a_service_that_is_down_is_not_buried(service: Service):
    service.turns = [503]
    policy = RetryPolicy(first_wait_s=0.001, share=0.0, burst=5)
    assert search(service, policy, searches=20) == [503] * 20
    assert service.asked == 20 + 5


def test_waits():
    policy = RetryPolicy(first_wait_s=0.1, longest_wait_s=0.3)
    assert policy.wait_s(0, "0") == 0
    assert policy.wait_s(0, "9") == 0.3
    assert all(policy.wait_s(5, None) <= 0.3 for _ in range(20))
    assert all(policy.wait_s(0, "soon") <= 0.1 for _ in range(20))
