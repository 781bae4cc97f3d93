"""Two local Ray nodes: a build on them, then the Serve application under load, with a killed
replica and a promotion. `make test-ray` installs Ray; elsewhere these tests are skipped."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NoRedis

from index.dataset import Dataset
from index.importers.demo_shop import generate
from index.importers.formats import import_dataset
from index.snapshot import Snapshot
from loadtest.retries import RetryingClient
from models.registry import promotion
from models.registry.publication import publish
from models.registry.registry import Registry
from models.training import blocks
from models.training.build import BuildSettings, build_snapshot
from models.training.cluster import joined
from models.training.codec import CodecSettings
from models.training.encoder import EncoderSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: make test-ray"),
    # Ray's own, of what it imports and leaves open.
    pytest.mark.filterwarnings("ignore"),
]

ROOT = Path(__file__).parents[2]
WAITING_S = 120.0
SEARCH_S = 30.0
CLIENTS = 16
ONGOING = 8
STUCK_S = 2.0
OBJECT_STORE_BYTES = 100 << 20
REPLICA = "ray::ServeReplica:onesearch:gateway"
QUERIES = ("red oak desk", "white lamp", "steel shelf", "black glass chair")


@dataclass(slots=True)
class Attempts(httpx.AsyncBaseTransport):
    """Every request that was sent, also those that the client repeats."""

    inner: httpx.AsyncBaseTransport = field(default_factory=httpx.AsyncHTTPTransport)
    waiting: dict[httpx.Request, float] = field(default_factory=dict[httpx.Request, float])
    """Since when."""
    failed: dict[httpx.Request, str] = field(default_factory=dict[httpx.Request, str])
    """Those that were not answered with 200, and what they brought."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.waiting[request] = time.monotonic()
        try:
            answer = await self.inner.handle_async_request(request)
            if answer.status_code != 200:
                self.failed[request] = f"{answer.status_code} {(await answer.aread()).decode()}"
        except httpx.TransportError as error:
            self.failed[request] = repr(error)
            raise
        finally:
            del self.waiting[request]
        return answer

    def longest_s(self) -> float:
        """How long the request waits that waits longest; asked from another thread."""
        now = time.monotonic()
        return max((now - began for began in tuple(self.waiting.values())), default=0.0)

    async def aclose(self) -> None:
        await self.inner.aclose()


@pytest.fixture(scope="module")
def address() -> Generator[str, None, None]:
    """A cluster of two nodes on this machine."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_enable_metrics_collection", "0")
        patch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "deploy.ray.proxy:middlewares")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.syspath_prepend(str(ROOT))
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            cluster.add_node(**node)
            cluster.wait_for_nodes()
            yield cluster.address
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def test_a_build_on_the_cluster_gives_the_same_bytes(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks, "BLOCK_ITEMS", 40)
    generate(tmp_path / "source", n_items=150, n_users=30, n_sessions=250)
    import_dataset("jsonl", tmp_path / "source", tmp_path / "dataset")
    dataset = Dataset.open(tmp_path / "dataset")
    settings = BuildSettings(
        encoder=EncoderSettings(dimension=32, bucket_count=1 << 12, batch=128),
        encoder_steps=15,
        codec=CodecSettings((16, 8)),
        codec_items=100,
        keyword_fusion=0.3,
    )
    here = build_snapshot(dataset, tmp_path / "here", settings)
    with joined(address, actor_cpus=0.5) as passes:
        there = build_snapshot(dataset, tmp_path / "there", settings, passes=passes)
    assert _files(there) == _files(here)
    assert there.trie.n_leaves > 20


def _files(snapshot: Snapshot) -> dict[str, bytes]:
    return {
        path.relative_to(snapshot.path).as_posix(): path.read_bytes()
        for path in snapshot.path.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    } | {"version": snapshot.version.encode()}


@pytest.fixture(scope="module")
def redis_port(
    unused_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Generator[int, None, None]:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on the PATH")
    folder = tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(unused_port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    with Redis(port=unused_port) as redis:
        _wait_until(lambda: _answers(redis))
    yield unused_port
    process.send_signal(signal.SIGTERM)
    process.wait(WAITING_S)


def _answers(redis: Any) -> bool:
    try:
        return bool(redis.ping())
    except NoRedis:
        return False


@pytest.fixture(scope="module")
def registry(tiny_pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry(tmp_path_factory.mktemp("ray") / "registry")
    promotion.promote(registry, publish(registry, *tiny_pair).record.version)
    return registry


@dataclass(frozen=True, slots=True)
class Application:
    """The deployed application, and Ray's `serve` module."""

    serve: Any
    url: str

    def running(self) -> int:
        """Gateways that take searches."""
        states = self.serve.status().applications["onesearch"].deployments["gateway"].replica_states
        return int(states.get("RUNNING", 0))


@pytest.fixture(scope="module")
def application(
    address: str, registry: Registry, redis_port: int
) -> Generator[Application, None, None]:
    """Two gateways and a keyword worker, from settings in the environment."""
    import ray
    from ray import serve

    environment = {
        "REGISTRY": str(registry.path),
        "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "KEYWORDS": "student",
        "PATIENCE": "0",
        "TIMEOUT_S": "10",
        "RAY_MIN_GATEWAYS": "2",
        "RAY_MAX_GATEWAYS": "4",
        "RAY_SEARCHES_PER_GATEWAY": "1",
        "RAY_ONGOING_PER_GATEWAY": str(ONGOING),
        "RAY_UPSCALE_DELAY_S": "0.5",
        "RAY_LOOK_BACK_S": "2",
        "RAY_GATEWAY_CPUS": "0.25",
        "RAY_WORKER_CPUS": "0.25",
        "RAY_HEALTH_PERIOD_S": "1",
    }
    port = _free_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(f"ONESEARCH_{name}", value)
        from deploy.ray.application import application as make

        ray.init(address=address, log_to_driver=False, logging_level="warning")
        try:
            options = {"host": "127.0.0.1", "port": port}
            # Both nodes have this machine's address: a second proxy would want the same port.
            serve.start(proxy_location="HeadOnly", http_options=options)
            serve.run(make(), name="onesearch")
            yield Application(serve, f"http://127.0.0.1:{port}")
            serve.shutdown()
        finally:
            ray.shutdown()


def test_a_search_passes_through_serve_and_its_keywords_are_made(
    application: Application, redis_port: int
):
    assert application.running() == 2
    with Redis(port=redis_port) as redis:

        def made() -> bool:
            body = {"query": "black steel desk"}
            answer = httpx.post(f"{application.url}/v1/search", json=body, timeout=SEARCH_S)
            assert answer.status_code == 200
            assert answer.json()["hits"]
            return redis.xlen("onesearch:1:keywords:made") > 0

        _wait_until(made)
    assert httpx.get(f"{application.url}/readyz", timeout=SEARCH_S).status_code == 200
    refused = httpx.put(f"{application.url}/v1/items", json={"items": []}, timeout=SEARCH_S)
    assert refused.status_code == 403


def test_more_gateways_under_load_and_one_killed(application: Application):
    attempts = Attempts()
    answered, in_work = asyncio.run(_load(application, attempts))
    print(f"{answered} searches answered, {len(attempts.failed)} asked again")
    assert answered > CLIENTS
    # Nothing but what the killed one had in work; what it had not begun, Serve gives to another.
    assert attempts.failed.keys() <= in_work
    assert len(attempts.failed) <= ONGOING
    assert all("ask again" in told for told in attempts.failed.values()), attempts.failed


async def _load(application: Application, attempts: Attempts) -> tuple[int, set[httpx.Request]]:
    """Searches while gateways are added, while one is killed and until another has its place; every
    one of them has to be answered. Their number, and the requests that the killed one had."""
    ended = asyncio.Event()
    answered = 0

    async def search(client: RetryingClient, number: int) -> None:
        nonlocal answered
        while not ended.is_set():
            body = {"query": QUERIES[number % len(QUERIES)]}
            answer = await client.search(f"{application.url}/v1/search", body, SEARCH_S)
            assert answer.status_code == 200, answer.text
            answered += 1

    async def reached(gateways: int) -> None:
        await asyncio.to_thread(_wait_until, lambda: application.running() == gateways)

    limits = httpx.Limits(max_connections=CLIENTS)
    async with (
        httpx.AsyncClient(transport=attempts, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        retrying = RetryingClient(client)
        for number in range(CLIENTS):
            group.create_task(search(retrying, number))
        await reached(4)
        assert attempts.failed == {}
        victim = _replicas()[0]
        # Held still first, so that it has searches in work when it is killed.
        victim.suspend()
        await asyncio.to_thread(_wait_until, lambda: attempts.longest_s() > STUCK_S)
        in_work = set(attempts.waiting)
        victim.kill()
        await reached(3)
        await reached(4)
        assert victim not in _replicas()
        ended.set()
    return answered, in_work


def test_all_gateways_follow_the_registry(
    application: Application, registry: Registry, tiny_pair: Any, other_checkpoint: Path
):
    before = httpx.get(f"{application.url}/readyz", timeout=SEARCH_S).json()["model_version"]
    promotion.promote(
        registry, publish(registry, tiny_pair.snapshot, other_checkpoint).record.version
    )

    def versions() -> set[str]:
        answers = [
            httpx.post(
                f"{application.url}/v1/search", json={"query": "oak shelf"}, timeout=SEARCH_S
            )
            for _ in range(30)
        ]
        assert all(answer.status_code == 200 for answer in answers)
        return {answer.json()["model_version"] for answer in answers}

    _wait_until(lambda: before not in versions())


def _replicas() -> list[psutil.Process]:
    """Gateways among the processes that this one has started."""
    found: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(REPLICA):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def _wait_until(holds: Callable[[], object]) -> None:
    until = time.monotonic() + WAITING_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


def _free_port() -> int:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
