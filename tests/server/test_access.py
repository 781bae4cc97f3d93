"""Who may change the catalogue."""

import socket
import threading
from typing import Any

import pytest

from server.access import CatalogueDoor, changes_catalogue, is_loopback
from server.settings import Settings

ITEM = {"item_id": "x", "title": "x"}


def scope(**headers: str) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"method": "PUT", "path": "/v1/items", "headers": named}


def refusal(settings: Settings, **headers: str) -> str | None:
    async def nothing(*_: Any) -> None: ...

    return CatalogueDoor(nothing, settings).refusal(scope(**headers))


@pytest.mark.parametrize("name", ["127.0.0.1:8080", "localhost", "LOCALHOST.:1", "[::1]:80"])
def test_this_machine_may_by_default(name: str):
    assert refusal(Settings(), host=name) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "shop.example"},
        {"host": "127.0.0.1.example:8080"},
        {"host": "localhost.example"},
        {"host": "[::2]"},
        {"host": "localhost", "x_forwarded_for": "192.0.2.1"},
        {"host": "localhost", "forwarded": "for=192.0.2.1"},
        {"host": "localhost", "via": "1.1 proxy"},
    ],
)
def test_others_may_not_unless_the_setting_says_so(headers: dict[str, str]):
    assert "catalogue_changes" in (refusal(Settings(), **headers) or "")
    assert refusal(Settings(catalogue_changes=True), **headers) is None
    assert "only reads" in (refusal(Settings(catalogue_changes=False), host="localhost") or "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_open_address_needs_the_setting(host: str):
    assert "loopback" in (refusal(Settings(host=host), host="localhost") or "")
    assert refusal(Settings(host=host, catalogue_changes=True), host="localhost") is None


def test_what_is_a_loopback_address():
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not any(is_loopback(host) for host in ("0.0.0.0", "", "no such host", "192.0.2.1"))


def test_which_requests_are_changes():
    for path in ("/v1/items", "/v1/items/", "/v1/items/a/b"):
        assert changes_catalogue({"method": "DELETE", "path": path})
        assert not changes_catalogue({"method": "GET", "path": path})
    assert not changes_catalogue({"method": "PUT", "path": "/v1/itemsx"})


def test_refused_changes_are_403_and_reach_nothing(stub_client: Any, stub: Any):
    client = stub_client(catalogue_changes=False)
    for response in (
        client.put("/v1/items", json={"items": [ITEM]}),
        client.patch("/v1/items", content=b"not even JSON"),
        client.delete("/v1/items/i1"),
    ):
        assert response.status_code == 403
        assert response.json()["type"] == "/problems/changes-refused"
        assert "catalogue_changes" in response.json()["detail"]
    assert not stub.changes
    assert client.get("/v1/items/i1").status_code == 404


def test_a_page_of_another_origin_gets_no_permission(stub_client: Any):
    response = stub_client().request(
        "OPTIONS",
        "/v1/items",
        headers={"origin": "http://evil.example", "access-control-request-method": "PUT"},
    )
    assert response.status_code == 405
    assert not any(name.startswith("access-control") for name in response.headers)


def test_large_bodies_come_a_few_at_a_time(stub_client: Any, stub: Any):
    client = stub_client(catalogue_requests=1, body_timeout_s=5, retry_after_s=3)
    where = (client.base_url.host, client.base_url.port or 80)
    head = "PUT /v1/items HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"
    with socket.create_connection(where, 10) as slow:
        slow.sendall(head.encode())
        until = threading.Event()
        for _ in range(100):
            response = client.put("/v1/items", json={"items": [ITEM]})
            if response.status_code == 503:
                break
            until.wait(0.02)
        assert [response.status_code, response.headers["retry-after"]] == [503, "3"]
        assert client.get("/v1/items/i1").status_code == 404
    for _ in range(100):
        if client.put("/v1/items", json={"items": [ITEM]}).status_code == 200:
            return
        until.wait(0.02)
    pytest.fail("the place was not given back")


LOAD = "/admin/generations/abcd:load"


def test_admin_is_for_this_machine_and_for_what_no_page_can_send(stub_client: Any):
    client = stub_client()
    assert client.post(LOAD, json={}).json()["type"] == "/problems/no-registry"
    for headers in ({"host": "shop.example"}, {"x-forwarded-for": "192.0.2.1"}):
        for answer in (
            client.post(LOAD, json={}, headers=headers),
            client.get("/admin/generations", headers=headers),
        ):
            assert [answer.status_code, answer.json()["type"]] == [403, "/problems/admin-refused"]
    for sent in ({"content": b"{}"}, {"data": {"a": "b"}}, {}):
        assert client.post(LOAD, **sent).status_code == 415


def test_a_setting_opens_and_closes_admin(stub_client: Any):
    closed = stub_client(admin=False).get("/admin/generations")
    assert [closed.status_code, "admin" in closed.json()["detail"]] == [403, True]
    opened = stub_client(admin=True).get("/admin/generations", headers={"host": "shop.example"})
    assert opened.status_code == 409
