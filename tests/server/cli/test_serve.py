"""`onesearch serve` as a process: starts, answers, drains, ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from index.errors import ConfigError
from models.registry.promotion import promote
from models.registry.publication import publish
from models.registry.registry import Registry
from server.cli import serve
from server.cli.serve import bind, loop_factory
from server.connections import HEAD_BYTES
from server.settings import Settings

STARTING_S = 60
# A test run in the background inherits an ignored SIGINT; the server under test must not.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from server.cli.main import run; run()"
)


@pytest.fixture
def server(tiny_pair: Any, tmp_path: Path) -> Generator[tuple[Any, str], None, None]:
    pair = ("--snapshot", tiny_pair.snapshot, "--checkpoint", tiny_pair.checkpoint)
    with started(tmp_path, *pair) as running:
        yield running


@contextlib.contextmanager
def started(folder: Path, *arguments: Any) -> Generator[tuple[Any, str], None, None]:
    """A server's process and its URL; settings are in `folder`."""
    config = folder / "settings.toml"
    config.write_text(
        "drain_s = 0.6\nengine_threads = 1\ncatalogue_changes = false\n"
        f'registry = "{folder / "registry"}"\n'
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", START, "serve", *arguments),
            *("--port", "0", "--config", config),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    try:
        yield process, json.loads(process.stderr.readline())["url"]
    finally:
        process.kill()
        process.communicate()


def wait_until_ready(client: httpx.Client) -> None:
    until = time.monotonic() + STARTING_S
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_it_answers_drains_on_sigterm_and_ends_with_0(server: tuple[Any, str]):
    process, url = server
    with httpx.Client(base_url=url, timeout=STARTING_S) as client:
        wait_until_ready(client)
        assert "connection" not in client.get("/livez").headers
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        response = client.get("/readyz")
        assert [response.status_code, response.json()["type"]] == [503, "/problems/not-ready"]
        answer = client.post("/v1/search", json={"query": "red desk"})
        assert answer.status_code == 200
        assert response.headers["connection"] == answer.headers["connection"] == "close"
    assert process.wait(60) == 0


def test_without_paths_it_serves_the_registrys_champion_and_pins_it(tiny_pair: Any, tmp_path: Path):
    registry = Registry(tmp_path / "registry")
    version = publish(registry, *tiny_pair).record.version
    promote(registry, version)
    with started(tmp_path) as (process, url):
        told = httpx.get(f"{url}readyz", timeout=STARTING_S).json()["generation"]
        assert [told["version"], told["alias"], told["problem"]] == [version, "champion", ""]
        assert [lease.generation for lease in registry.leases()] == [version]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not any((tmp_path / "registry" / "leases").iterdir())


def test_ctrl_c_ends_at_once_with_130(server: tuple[Any, str]):
    process, url = server
    with httpx.Client(base_url=url, timeout=STARTING_S) as client:
        wait_until_ready(client)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def test_a_head_without_end_is_refused(server: tuple[Any, str]):
    _, url = server
    where = httpx.URL(url)
    with socket.create_connection((where.host, where.port), 10) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nx-endless: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                connection.sendall(b"a" * HEAD_BYTES)
            pytest.fail("4 MiB of one header were taken")


def test_the_loop_is_uvloops_where_it_is_installed(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("uvloop")
    factory = loop_factory()
    assert factory is not None
    with contextlib.closing(factory()) as loop:
        assert type(loop).__module__.startswith("uvloop")
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory() is None


def test_a_port_in_use_and_hosts_that_are_not_ours():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is already in use"):
            bind("127.0.0.1", port)
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(ConfigError, match="no address of this machine"):
            bind(host, 0)


def test_a_port_is_free_again_after_its_socket_closes():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            pass
    bind("127.0.0.1", port).close()


def test_an_engine_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"`make vllm-env` and start \.venv-vllm/bin/onesearch"):
        serve.run_server(Settings(engine="vllm"))
