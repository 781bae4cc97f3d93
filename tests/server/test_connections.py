"""What arrives on a connection before any of our routes sees it."""

import re
import socket
import time

import httpx
import pytest

from server.connections import HEAD_BYTES

SEARCH = b"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = b'{"query": "desk"}'
PATIENCE_S = 60


def talk(client: httpx.Client, *parts: bytes) -> bytes:
    """Send the parts one after the other; all that comes back until the server closes."""
    url = client.base_url
    with socket.create_connection((url.host, url.port or 80), PATIENCE_S) as connection:
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(0.01)
            while data := connection.recv(65536):
                answer += data
        except ConnectionError:
            pass
        return answer


def statuses(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET /livez HTTP/1.1\r\nhost: x\r\nx: " + b"a" * HEAD_BYTES + b"\r\n\r\n"],
        [b"GET /livez HTTP/1.1\r\nhost: x\r\nx: ", *[b"a" * 16384] * 8, b"\r\n\r\n"],
        [b"GET /livez HTTP/1.1\r\nhost: x\r\n", *[b"a: b\r\n" * 2000] * 8, b"\r\n"],
        [b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n"],
        [b"GET /" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\nhost: x\r\n\r\n"],
    ],
    ids=["one value", "endless value", "endless fields", "many fields", "long path"],
)
def test_a_head_that_is_too_large_is_refused(plain: httpx.Client, parts: list[bytes]):
    # Who still sends when the connection is closed may not get to read the answer.
    allowed = [[b"400"]] if len(parts) == 1 else [[b"400"], []]
    assert statuses(talk(plain, *parts)) in allowed


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n",
        SEARCH + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        SEARCH + b"content-length: 3\r\ncontent-length: 4\r\n\r\n{}  ",
        b"GET /livez HTTP/1.1\r\nhost : x\r\n\r\n",
        b"GET \xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=[
        *("no host", "two hosts", "length", "length and chunks", "two lengths"),
        *("space", "bytes", "connect", "nonsense"),
    ],
)
def test_malformed_http_is_refused(plain: httpx.Client, request_: bytes):
    answer = talk(plain, request_)
    assert statuses(answer) == [b"400"]
    assert b"connection: close" in answer


def test_trailers_and_framing_are_limited_too(plain: httpx.Client):
    head = SEARCH + b"transfer-encoding: chunked\r\n\r\n" + chunked(BODY)
    endless = talk(plain, head, b"0\r\n", *[b"a: b\r\n" * 2000] * 16)
    assert b"200" not in statuses(endless)
    tiny = talk(plain, SEARCH + b"transfer-encoding: chunked\r\n\r\n", chunked(*[b" "] * 20_000))
    assert b"200" not in statuses(tiny)


def test_requests_may_come_in_pieces_and_together(plain: httpx.Client):
    whole = SEARCH + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
    last = b"GET /livez HTTP/1.0\r\nconnection: close\r\n\r\n"
    assert statuses(talk(plain, *(whole[i : i + 7] for i in range(0, len(whole), 7)), last)) == [
        b"200",
        b"200",
    ]
    many = talk(plain, whole * 50, last)
    assert statuses(many) == [b"200"] * 51
    framed = SEARCH + b"transfer-encoding: chunked\r\n\r\n" + chunked(BODY[:5], BODY[5:], b"")
    assert statuses(talk(plain, framed, last)) == [b"200", b"200"]


def test_an_upgrade_is_not_taken(plain: httpx.Client):
    upgrade = (
        b"GET /livez HTTP/1.1\r\nhost: x\r\n"
        b"connection: upgrade, close\r\nupgrade: websocket\r\n\r\n"
    )
    assert b"101" not in statuses(talk(plain, upgrade))
