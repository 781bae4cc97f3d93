"""/admin on a listener of its own, and web pages of other origins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from pydantic import ValidationError

from server.app import create_app
from server.cli.serve import bind_all, loop_factory
from server.connections import server_config
from server.logs import make_logger
from server.settings import Settings

SHOP = "https://shop.example"
ADMIN = "/admin/generations"
SEARCH = {"query": "desk"}


class Two(NamedTuple):
    main: httpx.Client
    admin: httpx.Client


@pytest.fixture
def two_listeners(stub: Any, log_lines: Any) -> Generator[Callable[..., Two], None, None]:
    """`two_listeners(**settings)` → clients of a gateway's two listeners."""
    with ExitStack() as stack:

        def start(**changes: Any) -> Two:
            given = Settings(port=0, admin_port=0, **changes)
            listeners, settings = stack.enter_context(bind_all(given))
            app = create_app(stub, settings, log=make_logger("debug", log_lines))
            server = uvicorn.Server(server_config(app, 2, app.state.connection_guard))

            def run() -> None:
                with asyncio.Runner(loop_factory=loop_factory()) as runner:
                    runner.run(server.serve(sockets=listeners))

            thread = threading.Thread(target=run, daemon=True)
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join(60)

            stack.callback(stop)
            ports = [listener.getsockname()[1] for listener in listeners]
            urls = [f"http://127.0.0.1:{port}" for port in ports]
            clients = [httpx.Client(base_url=url, timeout=60) for url in urls]
            return Two(*(stack.enter_context(client) for client in clients))

        yield start


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_each_listener_has_its_own_paths(two_listeners: Any, host: str, logged: Any):
    main, admin = two_listeners(host=host)
    assert admin.get(ADMIN).status_code == 409
    refused = main.get(ADMIN)
    assert [refused.status_code, refused.json()["type"]] == [403, "/problems/admin-refused"]
    assert "admin_port" in refused.json()["detail"]
    logged("request", status=403, problem="admin-refused")
    for path in ("/metrics", "/livez", "/readyz"):
        assert main.get(path).status_code == admin.get(path).status_code == 200
    assert main.post("/v1/search", json=SEARCH).status_code == 200
    for answer in (admin.post("/v1/search", json=SEARCH), admin.get("/"), admin.get("/docs")):
        assert [answer.status_code, answer.json()["type"]] == [404, "/problems/not-found"]
    # A web page whose name was made to point here.
    assert admin.get(ADMIN, headers={"host": "evil.example"}).status_code == 403
    # The name of the other listener in `Host` changes nothing.
    assert main.get(ADMIN, headers={"host": str(admin.base_url.netloc)}).status_code == 403


def test_keys_are_asked_for_on_both(two_listeners: Any, keys: Any):
    main, admin = two_listeners(host="0.0.0.0", keys_file=keys.file)
    assert [main.get(ADMIN).status_code, admin.get(ADMIN).status_code] == [401, 401]
    assert admin.get(ADMIN, headers=keys.headers("search")).status_code == 403
    assert admin.get(ADMIN, headers=keys.headers("admin")).status_code == 409
    assert main.get(ADMIN, headers=keys.headers("admin")).status_code == 403


def test_an_open_listener_has_no_admin_without_a_key(two_listeners: Any):
    _, admin = two_listeners(host="127.0.0.1", admin_host="0.0.0.0")
    assert admin.get(ADMIN).status_code == 403


def test_a_key_does_not_bring_admin_to_the_network(stub: Any, start_server: Any, keys: Any):
    """The only listener is not a loopback address: as before, /admin needs the setting."""
    headers = keys.headers("admin")
    for admin, status in ((None, 403), (False, 403), (True, 409)):
        settings = Settings(host="0.0.0.0", keys_file=keys.file, admin=admin)
        client = start_server(create_app(stub, settings, log=make_logger("error")))
        assert client.get(ADMIN, headers=headers).status_code == status


def test_metrics_may_be_public(stub_client: Any, keys: Any):
    assert stub_client(keys_file=keys.file).get("/metrics").status_code == 401
    assert stub_client(keys_file=keys.file, metrics_public=True).get("/metrics").status_code == 200


def preflight(client: httpx.Client, path: str, method: str, origin: str = SHOP) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization, content-type",
    }
    return client.request("OPTIONS", path, headers=headers)


def has_cors(response: httpx.Response) -> bool:
    return "access-control-allow-origin" in response.headers


def test_no_origin_is_allowed_by_default(stub_client: Any):
    client = stub_client()
    assert not has_cors(preflight(client, "/v1/search", "POST"))
    assert not has_cors(client.post("/v1/search", json=SEARCH, headers={"origin": SHOP}))


def test_a_listed_origin_may_search_and_send_events_only(stub_client: Any, keys: Any):
    client = stub_client(cors_origins=[SHOP], keys_file=keys.file)
    for path in ("/v1/search", "/v1/events"):
        answer = preflight(client, path, "POST")
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == SHOP
        assert "access-control-allow-credentials" not in answer.headers
    for method in ("PUT", "PATCH", "DELETE"):
        assert preflight(client, "/v1/items", method).status_code == 400
    for path in (ADMIN, "/metrics", "/"):
        assert not has_cors(preflight(client, path, "POST"))
        assert not has_cors(client.get(path, headers={"origin": SHOP}))
    for origin in ("https://evil.example", "http://shop.example", f"{SHOP}.evil.example", "null"):
        assert not has_cors(preflight(client, "/v1/search", "POST", origin))
    # A page can read why it was refused.
    refused = client.post("/v1/search", json=SEARCH, headers={"origin": SHOP})
    assert [refused.status_code, has_cors(refused)] == [401, True]
    assert refused.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "origin",
    ["*", "shop.example", f"{SHOP}/", "HTTPS://shop.example", "https://a@shop.example", "null", ""],
)
def test_origins_are_whole(origin: str):
    with pytest.raises(ValidationError, match="origin"):
        Settings(cors_origins=(origin,))
