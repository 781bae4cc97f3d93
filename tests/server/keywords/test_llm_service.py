"""The LLM generator against a real HTTP server that fails, is slow, limits or cannot be reached."""

from __future__ import annotations

import asyncio
import email.utils
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Send

from index.errors import ConfigError
from server.keywords.breaker import BreakerState, CircuitBreaker
from server.keywords.budget import Budget
from server.keywords.chat import ChatSettings
from server.keywords.generator import Failure, GenerationError
from server.keywords.keywords import (
    KeywordRequest,
    Keywords,
)
from server.keywords.llm import LlmGenerator
from server.keywords.response_format import RUNGS
from tests.server.keywords.model_server import (
    JSON,
    KEY,
    QUERY,
    UNDERSTANDING,
    Play,
    Run,
    Serve,
    answers,
    completion,
    failed,
    found,
    respond,
    says,
    sleeps,
    with_generator,
)


@pytest.mark.parametrize(
    ("play", "failure", "retry_after_s", "said"),
    [
        (answers(429, b"{}", {"retry-after": "17"}), Failure.RATE_LIMITED, 17.0, "429"),
        (answers(429, b"{}", {"retry-after": "1e9"}), Failure.RATE_LIMITED, 5.0, "429"),
        (answers(429, b"{}", {"retry-after": "99999999"}), Failure.RATE_LIMITED, 3600.0, "429"),
        (answers(503, b"{}", {"retry-after": "3"}), Failure.UNAVAILABLE, 3.0, "503"),
        (answers(500, b"oh no"), Failure.UNAVAILABLE, None, "500"),
        (answers(502, b'{"error": {"code": "bad_upstream"}}'), Failure.UNAVAILABLE, None, "bad_up"),
        (answers(401, b'{"error": {"code": "invalid_api_key"}}'), Failure.UNAVAILABLE, None, "key"),
        (answers(401, json.dumps({"error": {"code": KEY}}).encode()), "unavailable", None, "401"),
        (answers(404, b"{}"), Failure.UNAVAILABLE, None, "path or the model"),
        (answers(400, b"{}"), Failure.INVALID_REQUEST, None, "refuses the request"),
        (answers(413, b"{}"), Failure.INVALID_REQUEST, None, "too large"),
        (answers(200, b"<html>", {"content-type": "text/html"}), "unavailable", None, "not JSON"),
        (answers(200, b"[]"), Failure.UNAVAILABLE, None, "no chat completion"),
        (answers(200, b"{"), Failure.UNAVAILABLE, None, "no chat completion"),
        (answers(200, b""), Failure.UNAVAILABLE, None, "no chat completion"),
        (answers(200, b'{"choices": []}'), Failure.UNAVAILABLE, None, "no chat completion"),
        (answers(200, b"{}", {"content-encoding": "gzip"}), "unavailable", None, "compressed"),
        (says(None, refusal="I cannot."), Failure.REFUSED, None, "refused"),
        (says("", "content_filter"), Failure.REFUSED, None, "refused"),
    ],
)
def test_what_a_service_answers(
    serve: Serve, ask: Run, play: Play, failure: str, retry_after_s: float | None, said: str
) -> None:
    serve(play)
    error = failed(ask(KeywordRequest(QUERY))[0])
    assert (error.failure, error.retry_after_s) == (failure, retry_after_s)
    assert said in error.message


def test_retry_after_may_be_a_date(serve: Serve, ask: Run) -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    serve(answers(429, b"{}", {"retry-after": date}))
    error = failed(ask(KeywordRequest(QUERY))[0])
    assert error.retry_after_s is not None
    assert 90 < error.retry_after_s <= 100


def test_a_service_that_asks_for_patience_is_not_called(serve: Serve, urls: list[str]) -> None:
    server = serve(answers(429, b"{}", {"retry-after": "2"}), says(UNDERSTANDING))

    async def use(generator: LlmGenerator) -> list[Any]:
        first = (await generator.generate([KeywordRequest("a")]))[0]
        second = (await generator.generate([KeywordRequest("b")]))[0]
        assert len(server.bodies) == 1
        assert generator.stats().breaker is BreakerState.CLOSED
        await asyncio.sleep(2.05)
        return [first, second, (await generator.generate([KeywordRequest(QUERY)]))[0]]

    first, second, third = with_generator(urls[-1], use)
    assert failed(first).retry_after_s == 2
    assert failed(second).failure is Failure.RATE_LIMITED
    assert 0 < (failed(second).retry_after_s or 0) <= 2
    assert found(third).terms


def test_a_slow_service_is_given_up(serve: Serve, ask: Run) -> None:
    serve(sleeps(1.0, says(UNDERSTANDING)))
    for timeout in ("read_timeout_s", "total_timeout_s"):
        error = failed(ask(KeywordRequest(QUERY), **{timeout: 0.1})[0])
        assert error.failure is Failure.TIMEOUT
        assert error.retryable


def test_patience_ends_for_each_request_alone(serve: Serve, ask: Run) -> None:
    serve(says(UNDERSTANDING), sleeps(2.0, says(UNDERSTANDING)))
    requests = [KeywordRequest(f"shoe {n}") for n in range(3)]
    first, *others = ask(*requests, concurrency=1, patience_s=1.0)
    assert found(first).terms
    for error in map(failed, others):
        assert error.failure is Failure.TIMEOUT
        assert "no keywords within 1 s" in error.message


def test_a_reply_that_drips_is_given_up(serve: Serve, ask: Run) -> None:
    async def drip(body: dict[str, Any], send: Send) -> None:
        headers = [(b"content-type", JSON.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
            await asyncio.sleep(0.02)
        await send({"type": "http.response.body", "body": b""})

    serve(drip)
    error = failed(ask(KeywordRequest(QUERY), total_timeout_s=0.3)[0])
    assert error.failure is Failure.TIMEOUT


def test_a_huge_reply_is_cut_off(serve: Serve, ask: Run) -> None:
    async def flood(body: dict[str, Any], send: Send) -> None:
        headers = [(b"content-type", JSON.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(1600):  # 100 MiB
            await send({"type": "http.response.body", "body": b" " * 65536, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})

    serve(flood)
    error = failed(ask(KeywordRequest(QUERY))[0])
    assert error.failure is Failure.INVALID_ANSWER
    assert "larger than 262144 bytes" in error.message


def test_an_error_with_a_huge_body_keeps_its_status(serve: Serve, ask: Run) -> None:
    serve(answers(503, b"x" * 2**20, {"retry-after": "2"}))
    error = failed(ask(KeywordRequest(QUERY))[0])
    assert (error.failure, error.retry_after_s) == (Failure.UNAVAILABLE, 2.0)


def test_a_connection_that_breaks(ask: Run, serve: Serve) -> None:
    async def break_off(body: dict[str, Any], send: Send) -> None:
        headers = [(b"content-type", JSON.encode()), (b"content-length", b"100")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"choices', "more_body": True})
        raise ConnectionResetError("the play ends here")

    serve(break_off)
    error = failed(ask(KeywordRequest(QUERY))[0])
    assert error.failure is Failure.UNAVAILABLE
    assert "the connection broke" in error.message


def test_nobody_listens(ask: Run, urls: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        urls.append(f"http://127.0.0.1:{free.getsockname()[1]}/v1")
        error = failed(ask(KeywordRequest(QUERY))[0])
    assert error.failure is Failure.UNAVAILABLE
    assert "no connection" in error.message


def test_tls_trusts_what_the_system_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    files = ("-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem"))
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    command = ("openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "1")
    subprocess.run((*command, *files, *name), check=True, capture_output=True, timeout=60)
    body = completion(UNDERSTANDING)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whoever does not trust the certificate leaves before a request.
        if await reader.read(65536):
            writer.write(head.encode() + body)
            await writer.drain()
        writer.close()

    async def run() -> Keywords | GenerationError:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            generator = LlmGenerator(ChatSettings(f"https://localhost:{port}/v1", "tiny"))
            try:
                return (await generator.generate([KeywordRequest(QUERY)]))[0]
            finally:
                await generator.aclose()

    error = failed(asyncio.run(run()))
    assert error.failure is Failure.UNAVAILABLE
    assert "CERTIFICATE_VERIFY_FAILED" in error.message
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    assert found(asyncio.run(run())).terms


def test_redirects_are_not_followed(serve: Serve, ask: Run, urls: list[str]) -> None:
    elsewhere = serve(says(UNDERSTANDING))
    target = {"location": f"{urls[-1]}/chat/completions"}
    for status in (301, 302, 303, 307, 308):
        serve(answers(status, b"", target))
        error = failed(ask(KeywordRequest(QUERY))[0])
        assert error.failure is Failure.UNAVAILABLE
        assert "redirect" in error.message
    assert elsewhere.bodies == []


def test_proxies_of_the_environment_are_not_used(
    serve: Serve, ask: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    serve(says(UNDERSTANDING))
    assert found(ask(KeywordRequest(QUERY))[0]).terms


@pytest.mark.parametrize("taken", range(len(RUNGS)))
def test_the_response_format_that_a_service_takes_is_remembered(
    serve: Serve, urls: list[str], taken: int
) -> None:
    forms: list[str] = []

    async def picky(body: dict[str, Any], send: Send) -> None:
        form = body.get("response_format")
        has_lengths = "maxLength" in json.dumps(form)
        kind = "text" if form is None else form["type"] + (" lengths" if has_lengths else "")
        forms.append(kind)
        order = ["json_schema lengths", "json_schema", "json_object", "text"]
        if order.index(kind) < taken:
            await respond(send, 400, b'{"error": {"code": "unsupported_value"}}')
        else:
            await respond(send, 200, completion(UNDERSTANDING))

    serve(picky)

    async def use(generator: LlmGenerator) -> str:
        for _ in range(2):
            found((await generator.generate([KeywordRequest(QUERY)]))[0])
        assert generator.stats().breaker is BreakerState.CLOSED
        return generator.stats().response_format

    assert with_generator(urls[-1], use) == RUNGS[taken]
    assert len(forms) == taken + 2
    assert forms[-1] == forms[-2]


def test_a_bad_request_does_not_loosen_the_format(serve: Serve, urls: list[str]) -> None:
    serve(*[answers(400, b"{}")] * len(RUNGS), says(UNDERSTANDING))

    async def use(generator: LlmGenerator) -> str:
        error = failed((await generator.generate([KeywordRequest(QUERY)]))[0])
        assert error.failure is Failure.INVALID_REQUEST
        assert found((await generator.generate([KeywordRequest(QUERY)]))[0]).terms
        return generator.stats().response_format

    assert with_generator(urls[-1], use) == RUNGS[0]


def test_the_breaker_opens_and_recovers(serve: Serve, urls: list[str]) -> None:
    server = serve(*[answers(500)] * 3, says(UNDERSTANDING))
    breaker = CircuitBreaker(failures=3, open_s=0.3)

    async def use(generator: LlmGenerator) -> None:
        for n in range(3):
            failed((await generator.generate([KeywordRequest(f"a {n}")]))[0])
        assert generator.stats().breaker is BreakerState.OPEN
        error = failed((await generator.generate([KeywordRequest("b")]))[0])
        assert error.failure is Failure.UNAVAILABLE
        assert "left alone" in error.message
        assert 0 < (error.retry_after_s or 0) <= 0.3
        assert len(server.bodies) == 3, "nobody was called"
        await asyncio.sleep(0.35)
        # One probe goes through, the others are told to wait.
        got = await generator.generate([KeywordRequest(f"c {n}") for n in range(3)])
        assert [isinstance(answer, Keywords) for answer in got].count(True) == 1
        assert len(server.bodies) == 4
        assert generator.stats().breaker is BreakerState.CLOSED
        assert generator.stats().breaker_opened == 1
        assert found((await generator.generate([KeywordRequest(QUERY)]))[0]).terms

    with_generator(urls[-1], use, breaker=breaker)


def test_a_cancelled_probe_leaves_the_breaker_half_open(serve: Serve, urls: list[str]) -> None:
    serve(answers(500), sleeps(5, says(UNDERSTANDING)), says(UNDERSTANDING))
    breaker = CircuitBreaker(failures=1, open_s=0.05)

    async def use(generator: LlmGenerator) -> None:
        failed((await generator.generate([KeywordRequest("a")]))[0])
        await asyncio.sleep(0.1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await generator.generate([KeywordRequest("b")])
        assert generator.stats().breaker is BreakerState.HALF_OPEN
        assert found((await generator.generate([KeywordRequest(QUERY)]))[0]).terms
        assert generator.stats().breaker is BreakerState.CLOSED

    with_generator(urls[-1], use, breaker=breaker)


def test_wrong_replies_do_not_open_the_breaker(serve: Serve, urls: list[str]) -> None:
    serve(says("no"))

    async def use(generator: LlmGenerator) -> BreakerState:
        for n in range(3):
            failed((await generator.generate([KeywordRequest(f"a {n}")]))[0])
        return generator.stats().breaker

    state = with_generator(urls[-1], use, breaker=CircuitBreaker(failures=1))
    assert state is BreakerState.CLOSED


def test_a_spent_budget_says_when_to_come_back(serve: Serve, ask: Run) -> None:
    server = serve(says(UNDERSTANDING))
    answers = ask(*map(KeywordRequest, "abcd"), budget=Budget(requests_per_minute=3))
    assert [isinstance(answer, Keywords) for answer in answers] == [True, True, True, False]
    error = failed(answers[-1])
    assert error.failure is Failure.BUDGET
    assert error.message == "requests_per_minute (3) is spent"
    assert 58 <= (error.retry_after_s or 0) <= 61
    assert len(server.bodies) == 3


def test_tokens_are_settled_with_what_was_used(serve: Serve, urls: list[str]) -> None:
    # A call may need about 1,600 tokens and uses 120; one that fails uses none.
    serve(says(UNDERSTANDING), answers(500), says(UNDERSTANDING))

    async def use(generator: LlmGenerator) -> Sequence[bool]:
        answers: list[Any] = []
        for n in range(4):
            answers += await generator.generate([KeywordRequest(f"a {n}")])
        return [isinstance(answer, Keywords) for answer in answers]

    got = with_generator(urls[-1], use, budget=Budget(tokens_per_day=2000))
    assert got == [True, False, True, True]


def test_a_budget_that_nothing_fits_in_is_found_at_the_start() -> None:
    settings = ChatSettings("http://127.0.0.1:9/v1", "tiny")
    with pytest.raises(ConfigError, match="budget is too small: one request may need"):
        LlmGenerator(settings, Budget(tokens_per_minute=500))
    with pytest.raises(ConfigError, match="response_format is 'yaml'"):
        LlmGenerator(settings, response_format="yaml")
