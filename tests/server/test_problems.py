"""Every error is problem+json with a stable type, a request id and no insides."""

import socket
from typing import Any

import httpx
import pytest

from server.errors import PROBLEMS

SEARCH = "/v1/search"


def check_problem(response: httpx.Response, slug: str) -> dict[str, Any]:
    kind = PROBLEMS[slug]
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert [response.status_code, problem["status"]] == [kind.status, kind.status]
    assert problem["type"] == f"/problems/{slug}"
    assert problem["title"] == kind.title
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "body.query"),
        ({"query": None}, "body.query"),
        ({"query": 7}, "body.query"),
        ({"query": "a\0b"}, "body.query"),
        ({"query": "x", "limit": 0}, "body.limit"),
        ({"query": "x", "limit": 101}, "body.limit"),
        ({"query": "x", "limit": "10"}, "body.limit"),
        ({"query": "x", "limit": True}, "body.limit"),
        ({"query": "x", "limit": 10**30}, "body.limit"),
        ({"query": "x", "beam_width": 1025}, "body.beam_width"),
        ({"query": "x", "timeout_ms": 9}, "body.timeout_ms"),
        ({"query": "x", "explain": "yes"}, "body.explain"),
        ({"query": "x", "history": ["a"] * 201}, "body.history"),
        ({"query": "x", "history": [""]}, "body.history.0"),
        ({"query": "x", "filters": {"price_min": -1}}, "body.filters.price_min"),
        ({"query": "x", "filters": {"price_min": 2, "price_max": 1}}, "body.filters"),
        ({"query": "x", "filters": {"colour": ["red"]}}, "body.filters"),
        ({"query": "x", "secret_field": 1}, "body"),
        ([], "body"),
        ("text", "body"),
    ],
)
def test_wrong_fields_are_named(plain: httpx.Client, body: Any, place: str):
    problem = check_problem(plain.post(SEARCH, json=body), "invalid-request")
    assert problem["errors"][0]["place"] == place
    assert problem["errors"][0]["problem"]
    assert "secret_field" not in str(problem)


def test_the_limit_on_query_length_is_a_setting(stub_client: Any):
    client = stub_client(query_characters=5)
    assert client.post(SEARCH, json={"query": "abcde"}).status_code == 200
    check_problem(client.post(SEARCH, json={"query": "\u0301" * 9000}), "invalid-request")


@pytest.mark.parametrize(
    "raw",
    [rb'{"query": "\ud800"}', rb'{"query": "a\udfffb"}', rb'{"query": "x", "user_id": "\ud800a"}'],
)
def test_lone_surrogates_are_refused(plain: httpx.Client, raw: bytes):
    response = plain.post(SEARCH, content=raw, headers={"content-type": "application/json"})
    check_problem(response, "invalid-request")


@pytest.mark.parametrize(
    "raw", [b"{", b"\xff\xfe", b"[" * 30_000, b'{"query": ' + b"1" * 5000 + b"}", b"nul"]
)
def test_what_is_not_json_is_malformed(plain: httpx.Client, raw: bytes):
    response = plain.post(SEARCH, content=raw, headers={"content-type": "application/json"})
    check_problem(response, "malformed-request")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_numbers_must_be_finite(plain: httpx.Client, number: bytes):
    response = plain.post(
        SEARCH,
        content=b'{"query": "x", "filters": {"price_max": ' + number + b"}}",
        headers={"content-type": "application/json"},
    )
    check_problem(response, "invalid-request")


def test_other_media_types(plain: httpx.Client):
    response = plain.post(SEARCH, content=b"query=x")
    check_problem(response, "unsupported-media-type")


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/search+json", 200),
        ("text/notjson", 415),
        ("text/json", 415),
        ("application/jsonp", 415),
        ("application/x; of=application/json", 415),
    ],
)
def test_only_json_is_taken_for_json(plain: httpx.Client, media_type: str, status: int):
    response = plain.post(SEARCH, content=b'{"query": "x"}', headers={"content-type": media_type})
    assert response.status_code == status
    if status == 415:
        check_problem(response, "unsupported-media-type")


def test_probes_take_head(stub_client: Any, stub: Any):
    client = stub_client()
    assert [client.head(path).status_code for path in ("/livez", "/readyz")] == [200, 200]
    stub.live = None
    response = client.head("/readyz")
    assert [response.status_code, response.content] == [503, b""]
    assert client.head("/livez").status_code == 200


@pytest.mark.parametrize(
    "parameters",
    [{}, {"query": "x", "limit": "many"}, {"query": "x", "unknown": 1}, {"query": "\0"}],
)
def test_wrong_links(plain: httpx.Client, parameters: dict[str, Any]):
    check_problem(plain.get(SEARCH, params=parameters), "invalid-request")


def test_unknown_paths_and_methods(plain: httpx.Client):
    for path in ("/nope", "/v1/", "/v1/search/", "/problems/nope", "/%00", "/../etc/passwd"):
        check_problem(plain.get(path), "not-found")
    response = plain.delete(SEARCH)
    check_problem(response, "method-not-allowed")
    assert response.headers["allow"] == "GET, POST"


def test_bodies_are_limited_announced_or_not(stub_client: Any):
    client = stub_client(body_bytes=1024)
    big = b'{"query": "' + b"a" * 2000 + b'"}'
    check_problem(client.post(SEARCH, content=big), "body-too-large")
    check_problem(client.post(SEARCH, content=iter([big[:1000], big[1000:]])), "body-too-large")


def test_a_slow_body_times_out(stub_client: Any):
    client = stub_client(body_timeout_s=0.2)
    url = client.base_url
    with socket.create_connection((url.host, url.port), 5) as connection:
        connection.sendall(b"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"/problems/request-timeout" in answer


def test_a_bug_is_logged_and_not_shown(stub_client: Any, stub: Any, log_lines: Any):
    async def fail(_: Any) -> None:
        raise RuntimeError("secret inside /etc/secret.key")

    stub.answer = fail
    response = stub_client().post(SEARCH, json={"query": "x"})
    check_problem(response, "internal")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "secret inside" in log_lines.getvalue()
    assert response.headers["x-request-id"] in log_lines.getvalue()


def test_nothing_loaded_is_503_with_retry_after(stub_client: Any, stub: Any):
    stub.live = None
    client = stub_client()
    for response in (client.get("/readyz"), client.post(SEARCH, json={"query": "x"})):
        check_problem(response, "not-ready")
        assert int(response.headers["retry-after"]) >= 1
    assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("given", ["abc-123_X.y", "a" * 128])
def test_sane_request_ids_are_kept(plain: httpx.Client, given: str):
    response = plain.post(SEARCH, json={"query": "x"}, headers={"x-request-id": given})
    assert response.headers["x-request-id"] == response.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, "<script>", "ü".encode(), "a\tb"])
def test_other_request_ids_are_replaced(plain: httpx.Client, given: str):
    response = plain.get("/livez", headers={"x-request-id": given})
    assert response.headers["x-request-id"].isalnum()
    assert len(response.headers["x-request-id"]) == 24


def test_every_kind_of_problem_can_be_looked_up(plain: httpx.Client):
    for slug, kind in PROBLEMS.items():
        told = plain.get(f"/problems/{slug}").json()
        assert [told["status"], told["title"]] == [kind.status, kind.title]


def test_answers_carry_security_headers(plain: httpx.Client):
    for path in ("/livez", "/nope", "/", "/docs", "/openapi.json"):
        headers = plain.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
