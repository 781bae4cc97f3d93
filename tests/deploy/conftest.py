"""docker-compose.yml, read as Compose reads it, and its services as plain processes.

The services' own commands and environment are run; what a network of containers would give is
replaced: names of hosts, ports, and the folders that are mounted.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from models.checkpoint import Checkpoint, save_checkpoint
from models.registry import promotion
from models.registry.publication import publish
from models.registry.registry import Registry

ROOT = Path(__file__).parents[2]
PROGRAM = "from server.cli.main import run; run()"
STARTING_S = 180.0
ENDING_S = 60.0
READY = {"gateway": "serving", "worker": "working", "sidecar": "waiting"}
"""Service → the log line that says that it does its work."""
_SETTING = re.compile(r"#?([A-Z][A-Z0-9_]+)=(.*)")
_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<how>:-|:\?)(?P<text>[^}]*))?\})"
)


class NotSet(Exception):
    """A variable that `docker compose` would refuse to go on without."""


def interpolated(value: Any, variables: Mapping[str, str], used: set[str]) -> Any:
    """A parsed Compose file with `${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `$$`."""
    if isinstance(value, dict):
        return {name: interpolated(part, variables, used) for name, part in value.items()}
    if isinstance(value, list):
        return [interpolated(part, variables, used) for part in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        used.add(match["name"])
        given = variables.get(match["name"], "")
        if not given and match["how"] == ":?":
            raise NotSet(f"{match['name']}: {match['text']}")
        return given or (match["text"] or "" if match["how"] == ":-" else "")

    return _VARIABLE.sub(replace, value)


@dataclass(frozen=True, slots=True)
class Compose:
    """The file as it stands, resolved; the names of the variables that it reads."""

    resolved: dict[str, Any]
    used: frozenset[str]

    def environment(self, service: str) -> dict[str, str]:
        """What a service's process gets; entries without a value are handed on where they are."""
        entries = self.resolved["services"][service].get("environment", {})
        return {name: str(value) for name, value in entries.items() if value is not None}

    def command(self, service: str) -> list[str]:
        return [str(word) for word in self.resolved["services"][service]["command"]]


def read_settings(text: str) -> dict[str, str]:
    """Name → value of each line of an env file, commented out or not."""
    matches = (_SETTING.fullmatch(line) for line in text.splitlines())
    return {match[1]: match[2] for match in matches if match}


@pytest.fixture(scope="session")
def example() -> dict[str, str]:
    """What .env.example names, with the values that it shows."""
    return read_settings((ROOT / ".env.example").read_text())


@pytest.fixture(scope="session")
def compose_with() -> Callable[[Mapping[str, str]], Compose]:
    """docker-compose.yml under the given variables."""
    parsed = yaml.safe_load((ROOT / "docker-compose.yml").read_text())

    def resolve(variables: Mapping[str, str]) -> Compose:
        used: set[str] = set()
        return Compose(interpolated(parsed, variables, used), frozenset(used))

    return resolve


@pytest.fixture(scope="session")
def compose(compose_with: Any) -> Compose:
    """As after `cp .env.example .env`."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    set_there = read_settings("\n".join(line for line in lines if not line.startswith("#")))
    return compose_with(set_there)


@dataclass(frozen=True, slots=True)
class Running:
    """A service's process and where it is reached."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path


@dataclass(frozen=True, slots=True)
class Graph:
    """Redis, gateway, worker and sidecar, as docker-compose.yml says, and a collector of traces."""

    compose: Compose
    gateway: Running
    worker: Running
    sidecar: Running
    redis_port: int
    collector: Any


@pytest.fixture(scope="session")
def graph(
    compose_with: Any,
    tiny_pair: Any,
    tmp_path_factory: pytest.TempPathFactory,
    other_checkpoint: Path,
    collecting: Any,
) -> Generator[Graph, None, None]:
    """The graph, with a challenger beside the champion and the doors open that metrics need."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on the PATH")
    folder = tmp_path_factory.mktemp("compose")
    registry = Registry(folder / "var" / "registry")
    promotion.promote(registry, publish(registry, *tiny_pair).record.version)
    second = publish(registry, tiny_pair.snapshot, other_checkpoint).record.version
    promotion.challenge(registry, second)
    with ExitStack() as stack:
        collector = stack.enter_context(collecting())
        compose: Compose = compose_with(
            {
                "REDIS_PASSWORD": "letters0and1digits",
                "GRAFANA_PASSWORD": "x",
                "ONESEARCH_CATALOGUE_CHANGES": "true",
                "ONESEARCH_SHADOW_SHARE": "1",
                "ONESEARCH_OTLP_ENDPOINT": collector.url,
            }
        )
        port = stack.enter_context(redis(compose, folder))
        gateway, worker, sidecar = (
            stack.enter_context(onesearch(compose, service, event, folder, port))
            for service, event in READY.items()
        )
        yield Graph(compose, gateway, worker, sidecar, port, collector)


@pytest.fixture(scope="session")
def other_checkpoint(tiny_pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pair's weights with less of the codebook prior: another generation."""
    opened = Checkpoint.open(tiny_pair.checkpoint)
    other = replace(opened.settings, level_prior_beta=1.0)
    path = tmp_path_factory.mktemp("challenger") / "checkpoint"
    save_checkpoint(path, opened.load_model(), opened.tokenizer, other, {})
    return path


@contextmanager
def redis(compose: Compose, folder: Path) -> Generator[int, None, None]:
    """The service's own shell line, on a free port of this machine only, in a folder of its own."""
    port = free_port()
    data = folder / "redis"
    data.mkdir()
    shell, flag, script = compose.command("redis")
    script = (
        script.replace("/etc/onesearch/redis.conf", shlex.quote(str(_source(compose))))
        .replace("/tmp/redis.conf", shlex.quote(str(data / "redis.conf")))
        .strip()
    )
    process = subprocess.Popen(
        [shell, flag, f"{script} --port {port} --bind 127.0.0.1"],
        cwd=data,
        env=os.environ | compose.environment("redis"),
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + STARTING_S
        while not _listens(port):
            assert process.poll() is None and time.monotonic() < until, "Redis did not start"
            time.sleep(0.05)
        yield port
    finally:
        _end(process)


@contextmanager
def onesearch(
    compose: Compose, service: str, event: str, folder: Path, redis_port: int
) -> Generator[Running, None, None]:
    """One of our programs; `event`: the log line that says that it is ready."""
    moved = {
        "redis:6379": f"127.0.0.1:{redis_port}",
        "0.0.0.0": "127.0.0.1",
    }
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ONESEARCH_")
    }
    for name, value in compose.environment(service).items():
        for old, new in moved.items():
            value = value.replace(old, new)
        environment[name] = value
    environment |= {"ONESEARCH_PORT": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    metrics = str(free_port())
    words = [metrics if word.isdigit() else word for word in compose.command(service)]
    log = folder / f"{service}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            cwd=folder,
            env=environment,
            stderr=output,
        )
    try:
        ready = _wait_for(process, log, event)
        where = ready.get("url") or f"http://127.0.0.1:{metrics}/"
        yield Running(process, where.rstrip("/"), log)
    finally:
        _end(process)


def _source(compose: Compose) -> Path:
    """The file of the repository that is mounted as Redis's settings."""
    for volume in compose.resolved["services"]["redis"]["volumes"]:
        source, target, *_ = volume.split(":")
        if target == "/etc/onesearch/redis.conf":
            return ROOT / source
    raise AssertionError("redis.conf is not mounted")


def _wait_for(process: subprocess.Popen[bytes], log: Path, event: str) -> dict[str, Any]:
    until = time.monotonic() + STARTING_S
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("{") and line.endswith("}") and json.loads(line)["event"] == event:
                return json.loads(line)
        time.sleep(0.1)
    pytest.fail(f"no {event!r}: {log.read_text()[-2000:]}")


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def unused_port() -> int:
    """Nobody listens there."""
    return free_port()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def scraped() -> Callable[[str], str]:
    """The text that Prometheus would get from a process."""
    return lambda url: httpx.get(f"{url}/metrics", timeout=30).text
