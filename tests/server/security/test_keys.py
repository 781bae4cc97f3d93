"""API keys over HTTP: missing, wrong, expired, of another scope, replaced, revoked."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from index.errors import ConfigError
from server import keys as keys_module
from server.app import create_app
from server.keys import SCOPES, Key, KeySet, make_key
from server.keys_door import PUBLIC, scope_needed
from server.keys_file import change_keys, read_keys
from server.settings import Settings

SEARCH = {"query": "desk"}
ITEMS = {"items": [{"item_id": "x", "title": "x"}]}
EVENTS = {"events": []}
# Of each scope a request, and what it comes to with the right key over the stub.
NEEDING: tuple[tuple[str, str, str, Any, int], ...] = (
    ("search", "POST", "/v1/search", SEARCH, 200),
    ("search", "GET", "/v1/search?query=desk", None, 200),
    ("search", "GET", "/v1/items/none", None, 404),
    ("search", "GET", "/v1/models", None, 200),
    ("events", "POST", "/v1/events", EVENTS, 503),
    ("ingest", "PUT", "/v1/items", ITEMS, 200),
    ("ingest", "PATCH", "/v1/items", {"items": [{"item_id": "x", "stock": 1}]}, 200),
    ("ingest", "DELETE", "/v1/items/x", None, 200),
    ("metrics", "GET", "/metrics", None, 200),
    ("admin", "GET", "/admin/generations", None, 409),
    ("admin", "POST", "/admin/generations/x:load", {}, 409),
    ("admin", "GET", "/nothing-here", None, 404),
)


def ask(client: Any, method: str, path: str, body: Any, headers: dict[str, str] | None = None):
    content = {} if body is None else {"json": body}
    return client.request(method, path, headers=headers or {}, **content)


def test_without_keys_nothing_is_asked_for(stub_client: Any):
    assert stub_client().post("/v1/search", json=SEARCH).status_code == 200


def test_what_is_public_needs_no_key(stub_client: Any, keys: Any):
    client = stub_client(keys_file=keys.file)
    for path in (*PUBLIC, "/problems/key-refused"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(("scope", "method", "path", "body", "status"), NEEDING)
def test_each_scope_opens_its_own_paths_only(
    stub_client: Any,
    keys: Any,
    logged: Any,
    scope: str,
    method: str,
    path: str,
    body: Any,
    status: int,
):
    # The tests' own environment says that nobody sends events.
    client = stub_client(keys_file=keys.file, events=True)
    refused = ask(client, method, path, body)
    assert [refused.status_code, refused.json()["type"]] == [401, "/problems/key-refused"]
    assert refused.headers["www-authenticate"] == 'Bearer realm="onesearch"'
    assert logged("request", status=401)["problem"] == "key-refused"
    for other in set(SCOPES) - {scope}:
        answer = ask(client, method, path, body, keys.headers(other))
        assert [answer.status_code, answer.json()["type"]] == [403, "/problems/scope-missing"]
        assert "insufficient_scope" in answer.headers["www-authenticate"]
        logged("request", status=403, problem="scope-missing", client=f"the-{other}")
    assert ask(client, method, path, body, keys.headers(scope)).status_code == status
    logged("request", status=status, client=f"the-{scope}")


def wrong_keys(text: str) -> list[str | bytes]:
    other = make_key("other", ["search"], 0.0)[0]
    last = "A" if text[-1] != "A" else "E"
    return [
        "",
        "Bearer",
        "Bearer x",
        f"Basic {text}",
        text,
        f"Bearer {other}",
        f"Bearer {text[:-1]}{last}",
        f"Bearer {text[:-1]}",
        f"Bearer {text}a",
        f"Bearer {text.upper()}",
        f"Bearer {text[:20]}{other[20:]}",
        f"Bearer {text} {text}",
        "Bearer " + "a" * 60_000,
        b"Bearer " + b"\xff" * 64,
        f"Bearer {hashlib.sha256(text.encode()).hexdigest()}",
    ]


def test_wrong_keys_are_refused_and_not_repeated(
    stub_client: Any, keys: Any, logged: Any, log_lines: Any
):
    client = stub_client(keys_file=keys.file)
    text = keys.texts["search"]
    for number, given in enumerate(wrong_keys(text)):
        headers = {"authorization": given, "x-request-id": f"wrong-{number}"}
        answer = client.post("/v1/search", json=SEARCH, headers=headers)
        assert [answer.status_code, answer.json()["type"]] == [401, "/problems/key-refused"], given
        logged("request", request_id=f"wrong-{number}", problem="key-refused")
    # Two headers, of which one is right, are none.
    twice = [("authorization", f"Bearer {text}"), ("authorization", "Bearer x")]
    assert client.post("/v1/search", json=SEARCH, headers=twice).status_code == 401
    secret = text[21:]
    assert secret not in log_lines.getvalue()
    assert text[:-1] not in log_lines.getvalue()
    told = client.get("/metrics", headers=keys.headers("metrics")).text
    assert 'onesearch_keys_refused_total{reason="unknown"} 16.0' in told
    assert text[4:20] not in told


def test_an_expired_key_is_refused_and_says_so(
    stub_client: Any, add_key: Any, logged: Any, tmp_path: Path
):
    text, key = add_key("shop", "search", now=time.time() - 20, expires=time.time() - 10)
    client = stub_client(keys_file=tmp_path / "keys.json")
    answer = client.post("/v1/search", json=SEARCH, headers={"authorization": f"Bearer {text}"})
    assert [answer.status_code, answer.json()["detail"]] == [401, "the key has expired"]
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    logged("request", status=401, problem="key-refused")
    # One who has only the id does not learn that it has expired.
    guess = f"Bearer {text[:21]}{'a' * 43}"
    answer = client.post("/v1/search", json=SEARCH, headers={"authorization": guess})
    assert answer.json()["detail"] == "this is no key of this server"
    assert key.ended(time.time())


def until_status(client: Any, headers: dict[str, str], status: int) -> None:
    until = time.monotonic() + 30
    while client.post("/v1/search", json=SEARCH, headers=headers).status_code != status:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_running_server_follows_its_file(stub_client: Any, keys: Any, add_key: Any, logged: Any):
    """Two keys of one name are valid at once; a revoked one ends; damage changes nothing."""
    client = stub_client(keys_file=keys.file)
    new, _ = add_key("the-search", "search")
    headers = {"authorization": f"Bearer {new}"}
    until_status(client, headers, 200)
    assert client.post("/v1/search", json=SEARCH, headers=keys.headers("search")).status_code == 200
    change_keys(keys.file, lambda known: known[1:])
    until_status(client, keys.headers("search"), 401)
    assert client.post("/v1/search", json=SEARCH, headers=headers).status_code == 200
    kept = keys.file.read_bytes()
    keys.file.write_bytes(b"{")
    assert "not valid JSON" in logged("keys file not read")["detail"]
    assert client.post("/v1/search", json=SEARCH, headers=headers).status_code == 200
    told = client.get("/metrics", headers=keys.headers("metrics")).text
    assert "onesearch_keys_problem 1.0" in told
    keys.file.write_bytes(kept)
    logged("keys read")


def test_every_route_has_a_decision(stub: Any):
    """A route that is not named here is shut to all but the scope admin."""
    decided = {path.partition("?")[0] for _, _, path, _, _ in NEEDING} | PUBLIC
    seen = 0
    for route in create_app(stub, Settings()).routes:
        assert isinstance(route, Route)
        for method in route.methods or ():
            needed = scope_needed({"path": route.path, "method": method})
            seen += 1
            if route.path in PUBLIC or route.path.startswith("/problems/"):
                assert needed is None
            elif route.path.startswith("/admin"):
                assert needed == "admin"
            elif route.path.startswith("/v1/items") and method not in ("GET", "HEAD"):
                assert needed == "ingest"
            else:
                assert needed in ("search", "events", "metrics"), route.path
    assert seen > 15
    assert decided


@pytest.mark.parametrize(
    "path",
    [
        "/admin/generations",
        "/%61dmin/generations",
        "/v1/../admin/generations",
        "//admin/generations",
    ],
)
def test_no_spelling_of_a_path_passes_by(stub_client: Any, keys: Any, talk: Any, path: str):
    client = stub_client(keys_file=keys.file)
    request = (
        f"GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {keys.texts['search']}"
        "\r\nconnection: close\r\n\r\n"
    )
    status = talk(client, [request.encode()]).split()[1]
    assert status in (b"403", b"404")


def test_keys_are_compared_in_constant_time():
    """By construction: digests of one length, compared by the standard library's function, also
    for an id that nobody has."""
    source = inspect.getsource(KeySet.find)
    assert source.count("hmac.compare_digest(") == 1
    assert " == " not in source
    assert keys_module.hmac is hmac
    text, key = make_key("a", ["search"], 0.0)
    compared: list[tuple[int, int]] = []

    class Watched:
        @staticmethod
        def compare_digest(one: bytes, other: bytes) -> bool:
            compared.append((len(one), len(other)))
            return hmac.compare_digest(one, other)

    known = KeySet([key])
    try:
        keys_module.hmac = Watched  # type: ignore[assignment]
        assert known.find(text, 1.0) is key
        unknown = make_key("b", ["search"], 0.0)[0]
        assert known.find(unknown, 1.0) == "unknown"
        assert known.find(text[:21] + unknown[21:], 1.0) == "unknown"
    finally:
        keys_module.hmac = hmac
    assert compared == [(32, 32)] * 3


def test_the_file_holds_no_key_and_is_its_owners_alone(keys: Any):
    data = keys.file.read_text()
    for text in keys.texts.values():
        assert text not in data
        assert text[21:] not in data
        assert hashlib.sha256(text.encode()).hexdigest() in data
    assert stat.S_IMODE(keys.file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not valid JSON"),
        (b"[]", "an entry that is none"),
        (b"{}", "format 1"),
        (b'{"format": 1}', "an entry that is none"),
        (b'{"format": 1, "keys": [7]}', "an entry that is none"),
        (b'{"format": 1, "keys": [{"id": "00"}]}', "an entry that is none"),
        (b"[" * 1_000_000, "not valid JSON"),
    ],
)
def test_damaged_files_are_told_in_one_line(tmp_path: Path, content: bytes, told: str):
    file = tmp_path / "keys.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        read_keys(file)


def test_entries_are_checked(keys: Any):
    whole = json.loads(keys.file.read_text())
    for change in (
        {"scopes": ["everything"]},
        {"scopes": []},
        {"sha256": "00"},
        {"name": "a b"},
        {"id": "x"},
        {"key": "osk_"},
        {"rate": 0},
    ):
        bad = {**whole, "keys": [whole["keys"][0] | change]}
        keys.file.write_text(json.dumps(bad))
        with pytest.raises(ConfigError, match="keys file"):
            read_keys(keys.file)
    keys.file.write_text(json.dumps({**whole, "keys": [whole["keys"][0]] * 2}))
    with pytest.raises(ConfigError, match="two keys of one id"):
        read_keys(keys.file)


def test_a_file_that_anybody_may_write_is_not_believed(keys: Any):
    keys.file.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_keys(keys.file)


def test_no_server_without_its_file(stub: Any, tmp_path: Path):
    with pytest.raises(ConfigError, match="onesearch keys create"):
        create_app(stub, Settings(keys_file=tmp_path / "none.json"))


def test_a_change_that_fails_leaves_the_file_as_it_was(keys: Any, monkeypatch: pytest.MonkeyPatch):
    before = keys.file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        change_keys(keys.file, lambda known: known[1:])
    assert keys.file.read_bytes() == before
    assert not [path for path in keys.file.parent.iterdir() if ".tmp-" in path.name]


def test_keys_are_long_and_never_the_same():
    made = [make_key("a", ["search"], 0.0) for _ in range(100)]
    assert len({text for text, _ in made}) == len({key.id for _, key in made}) == 100
    assert {len(text) for text, _ in made} == {64}
    assert all(isinstance(KeySet([key]).find(text, 1.0), Key) for text, key in made)
