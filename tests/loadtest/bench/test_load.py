"""The load against a tiny server that answers by a script."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest

from loadtest.bench.load import Tally, offer, post, press

Script = Callable[[int], tuple[float, bytes]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def server(script: Script) -> AsyncIterator[int]:
    """`script(number)` → seconds to wait and the answer, or nothing to break the connection."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r")[0])
                assert json.loads(await reader.readexactly(length)) == {"query": "x"}
                count += 1
                wait, answer = script(count)
                await asyncio.sleep(wait)
                if not answer:
                    break
                writer.write(answer[:20])
                await writer.drain()
                writer.write(answer[20:])
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await asyncio.sleep(0.02)


def answer(status: int, body: bytes = b'{"degraded":[]}') -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


REQUESTS = [post("/v1/search", b'{"query": "x"}')]


def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.anyio
async def test_every_request_that_was_due_is_accounted_for():
    answers = (
        answer(200),
        answer(200, b'{"degraded":["engine_deadline"]}'),
        answer(503),
        answer(504),
        b"",
    )
    async with server(lambda number: (0.0, answers[number % 5])) as port:
        tally = await offer(port, REQUESTS, rate=400, seconds=0.5, random=random())
    assert tally.offered == sum(tally.outcomes.values()) > 100
    share = tally.offered / 5
    for outcome in ("200", "degraded", "503", "504", "lost"):
        assert tally.outcomes[outcome] == pytest.approx(share, abs=2)
    assert tally.answered == tally.outcomes["200"] + tally.outcomes["degraded"]
    assert tally.goodput == tally.answered / 0.5
    assert len(tally.latencies["503"]) == tally.outcomes["503"]


@pytest.mark.anyio
async def test_latency_counts_from_when_a_request_was_due():
    """A server that stops for a while keeps all waiting that came meanwhile."""

    def script(number: int) -> tuple[float, bytes]:
        if number == 20:
            time.sleep(0.2)
        return 0.0, answer(200)

    async with server(script) as port:
        tally = await offer(port, REQUESTS, rate=200, seconds=0.5, random=random())
    waited = [latency for latency in tally.latencies["200"] if latency > 0.05]
    assert len(waited) > 20
    assert tally.percentile(1) > 0.19


@pytest.mark.anyio
async def test_the_load_does_not_wait_for_answers_and_is_bounded():
    async with server(lambda _: (0.3, answer(200))) as port:
        tally = await offer(port, REQUESTS, rate=200, seconds=0.2, random=random(), connections=10)
    assert tally.outcomes["200"] == 10
    assert tally.outcomes["unsent"] == tally.offered - 10


@pytest.mark.anyio
@pytest.mark.parametrize(("idle_s", "is_lost"), [(60.0, True), (0.0, False)])
async def test_connections_that_have_idled_are_not_used_again(
    monkeypatch: pytest.MonkeyPatch, idle_s: float, is_lost: bool
):
    """A server that closes connections when their second request comes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"}")
            writer.write(answer(200))
            await reader.read(1)
        writer.close()

    monkeypatch.setattr("loadtest.bench.load.IDLE_S", idle_s)
    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        tally = await offer(port, REQUESTS, rate=100, seconds=0.5, random=random())
        await asyncio.sleep(0.05)
    assert (tally.outcomes["lost"] > 0) == is_lost
    assert tally.offered == sum(tally.outcomes.values())


@pytest.mark.anyio
async def test_clients_that_press_have_one_request_each_under_way():
    async with server(lambda _: (0.02, answer(200))) as port:
        tally = await press(port, REQUESTS, clients=4, seconds=0.3, random=random())
    assert 20 <= tally.offered == tally.outcomes["200"] <= 4 * 16
    assert tally.percentile(0.5) == pytest.approx(0.02, abs=0.02)


def test_an_empty_tally_has_no_latency():
    tally = Tally()
    assert np.isnan(tally.percentile(0.99))
    assert tally.goodput == tally.share("503") == 0
