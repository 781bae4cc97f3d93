"""Bodies made to hurt: deeply nested, packed, endless. Each is refused; the server goes on."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import pytest

from server.access import EVENTS_PATH, ITEMS_PATH

MILLION = 1_000_000
JSON = {"content-type": "application/json"}
LARGE = 32 * 1024 * 1024
DEEP = {
    "arrays": b"[" * MILLION,
    "closed arrays": b"[" * MILLION + b"]" * MILLION,
    "objects": b'{"a":' * MILLION + b"1" + b"}" * MILLION,
    "in a field": b'{"query": ' + b"[" * MILLION + b"]" * MILLION + b"}",
    "in an unknown field": b'{"query": "x", "y": ' + b"[" * MILLION + b"]" * MILLION + b"}",
    "in items": b'{"items": ' + b"[" * MILLION + b"]" * MILLION + b"}",
    "in events": b'{"events": [{"a": ' + b"[" * MILLION + b"]" * MILLION + b"}]}",
}


@pytest.fixture
def client(stub_client: Any) -> Any:
    """A gateway that takes bodies far larger than it does by default."""
    return stub_client(
        body_bytes=LARGE, catalogue_body_bytes=LARGE, event_body_bytes=LARGE, events=True
    )


@pytest.mark.parametrize("body", DEEP.values(), ids=DEEP)
def test_a_million_levels_are_refused(client: Any, logged: Any, body: bytes):
    for number, (method, path) in enumerate(
        (
            ("POST", "/v1/search"),
            ("PUT", ITEMS_PATH),
            ("PATCH", ITEMS_PATH),
            ("DELETE", ITEMS_PATH),
            ("POST", EVENTS_PATH),
        )
    ):
        name = f"deep-{number}"
        answer = client.request(method, path, content=body, headers=JSON | {"x-request-id": name})
        assert answer.status_code in (400, 422, 503), (path, answer.text)
        assert answer.json()["type"] != "/problems/internal"
        line = logged("request", request_id=name)
        assert line["problem"] == answer.json()["type"].removeprefix("/problems/")
    assert client.post("/v1/search", json={"query": "desk"}).status_code == 200


def test_by_default_they_are_too_large(plain: Any):
    answer = plain.post("/v1/search", content=DEEP["arrays"], headers=JSON)
    assert [answer.status_code, answer.json()["type"]] == [413, "/problems/body-too-large"]


def packed(coding: str) -> bytes:
    zeros = b'{"query": "' + b"a" * (64 * 1024 * 1024) + b'"}'
    return gzip.compress(zeros, 9) if coding == "gzip" else zlib.compress(zeros, 9)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "GZIP", "gzip, gzip", "br", "zstd"])
def test_nothing_is_unpacked(stub_client: Any, logged: Any, coding: str):
    """64 MiB in 64 KiB; and a body that only says that it is packed."""
    client = stub_client(events=True, body_bytes=LARGE)
    bomb = packed(coding)
    assert len(bomb) < 100_000
    for body in (bomb, b'{"query": "desk"}'):
        for method, path in (("POST", "/v1/search"), ("PUT", ITEMS_PATH), ("POST", EVENTS_PATH)):
            answer = client.request(
                method, path, content=body, headers=JSON | {"content-encoding": coding}
            )
            assert answer.status_code == 415
            assert answer.headers["accept-encoding"] == "identity"
    logged("request", status=415, problem="unsupported-media-type")
    # Without the header it is what it is: no JSON.
    answer = client.post("/v1/search", content=bomb, headers=JSON)
    assert answer.json()["type"] == "/problems/malformed-request"
    whole = client.post(
        "/v1/search", json={"query": "desk"}, headers={"content-encoding": "identity"}
    )
    assert whole.status_code == 200


def test_packed_transfers_are_no_http_of_ours(stub_client: Any, talk: Any):
    head = (
        b"POST /v1/search HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        b"content-type: application/json\r\ntransfer-encoding: gzip, chunked\r\n\r\n"
    )
    bomb = packed("gzip")
    sent = [head, b"%x\r\n%s\r\n0\r\n\r\n" % (len(bomb), bomb)]
    status = talk(stub_client(), sent).split()[1]
    assert status in (b"400", b"413", b"415", b"501")


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 4\r\ntransfer-encoding: chunked",
        b"content-length: 4\r\ncontent-length: 5",
        b"transfer-encoding: chunked\r\ntransfer-encoding: identity",
        b"transfer-encoding: xchunked",
        b"content-length: -1",
        b"content-length: 0x4",
    ],
)
def test_bodies_of_two_lengths_smuggle_nothing(stub_client: Any, talk: Any, framing: bytes):
    """Never are there two answers to what one of the two readings takes for one request."""
    inner = b"GET /admin/generations HTTP/1.1\r\nhost: localhost\r\n\r\n"
    request = b"POST /v1/search HTTP/1.1\r\nhost: x\r\n" + framing + b"\r\n\r\n0\r\n\r\n" + inner
    answer = talk(stub_client(body_timeout_s=0.5, head_timeout_s=0.5), [request])
    assert b"/problems/no-registry" not in answer
    assert not answer.startswith(b"HTTP/1.1 200")
