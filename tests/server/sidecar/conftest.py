"""A tiny simulated shop with a champion that nobody's behaviour taught yet, and a Redis."""

from __future__ import annotations

import asyncio
import io
import shutil
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from index.dataset import Dataset, write_dataset
from index.importers.demo_shop import generate
from index.importers.formats import import_dataset
from index.rescoring import RescoringWeights
from index.snapshot import Snapshot
from index.splits import split_queries
from models.checkpoint import save_checkpoint
from models.registry import promotion
from models.registry.publication import publish
from models.registry.registry import Registry
from models.training.build import BuildSettings, build_snapshot
from models.training.encoder import EncoderSettings
from models.training.gate import GateSettings
from models.training.run_sft import SftRun, run_sft
from models.training.sft import SftSettings
from server.events.log import BehaviourLog
from server.events.records import Event
from server.experiment.records import Exposure
from server.logs import make_logger
from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer, find_binary
from server.redis.keys import Keys
from server.settings import Settings
from server.sidecar.metrics import SidecarMetrics
from server.sidecar.settings import SidecarSettings, StageSettings
from server.sidecar.sidecar import Sidecar

SHARES = (0.5, 0.25, 0.25)
BARELY = SftSettings(
    hidden_size=32,
    layers=1,
    heads=2,
    key_heads=1,
    head_dim=16,
    inner_size=64,
    vocabulary_size=400,
    examples=64,
    batch_examples=64,
    chunk_examples=256,
    learning_rate=1e-4,
)
SMALL_GATE = GateSettings(
    min_searches=20,
    min_valid_rate=0.0,
    max_weight_distance=5.0,
    max_concentration_gain=0.5,
    max_score_shift=50.0,
)
SMALL_STAGE = StageSettings(2560, 64, 5e-3)


class Shop(NamedTuple):
    """The dataset of a registry's champion, and the registry. `dataset` has no judgments, and
    behaviour of training queries only; `judged` is the same shop with its judgments."""

    dataset: Path
    registry: Path
    judged: Path


@pytest.fixture(scope="session")
def made_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("sidecar-shop")
    generate(folder / "source", n_items=150, n_users=10, n_sessions=20)
    import_dataset("jsonl", folder / "source", folder / "whole")
    found = Dataset.open(folder / "whole")
    judgments: list[dict[str, Any]] = found.judgments.to_pylist()
    sides = split_queries({row["query"] for row in judgments}, shares=SHARES)
    clicks = [
        {"session_id": f"s{n}", "query": row["query"], "item_id": row["item_id"], "kind": "click",
         "time": float(n)}
        for n, row in enumerate(judgments)
        if row["grade"] >= 3 and sides[row["query"]] == "train"
    ]  # fmt: skip
    write_dataset(
        folder / "dataset",
        items=found.items.to_pylist(),
        events=clicks,
        splits=sides,
        simulated=True,
    )
    dataset = Dataset.open(folder / "dataset")
    encoder = EncoderSettings(dimension=32, bucket_count=1 << 12, batch=128)
    build = BuildSettings(encoder=encoder, encoder_steps=15)
    snapshot = build_snapshot(dataset, folder / "snapshot", build)
    barely = run_sft(SftRun(dataset, snapshot, folder / "barely", settings=BARELY))
    # It ranks by what its decoder says alone, and that was hardly taught.
    alone = RescoringWeights(sid=1.0, dense=0.0, lexical=0.0, popularity=0.0, price=0.0)
    settings = replace(barely.settings, rescoring=alone.to_json())
    model, tokenizer = barely.load_model(), barely.tokenizer
    save_checkpoint(folder / "checkpoint", model, tokenizer, settings, {})
    registry = Registry(folder / "registry")
    version = publish(registry, folder / "snapshot", folder / "checkpoint").record.version
    promotion.promote(registry, version)
    return Shop(folder / "dataset", registry.path, folder / "whole")


@pytest.fixture
def shop(made_shop: Shop, tmp_path: Path) -> Shop:
    """With a registry of the test's own."""
    shutil.copytree(made_shop.registry, tmp_path / "registry")
    return made_shop._replace(registry=tmp_path / "registry")


@pytest.fixture(scope="session")
def running_redis(
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[EmbeddedServer, None, None]:
    server = EmbeddedServer(tmp_path_factory.mktemp("redis"), find_binary())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def on_redis(running_redis: EmbeddedServer) -> Callable[..., Any]:
    """`on_redis(work)` → what `work(RedisConnection)` returns."""

    def run(work: Callable[[RedisConnection], Awaitable[Any]]) -> Any:
        async def go() -> Any:
            redis = RedisConnection(running_redis.url, 5.0)
            try:
                return await work(redis)
            finally:
                await redis.close()

        return asyncio.run(go())

    return run


@pytest.fixture
def empty_redis(running_redis: EmbeddedServer, on_redis: Callable[..., Any]) -> EmbeddedServer:
    on_redis(lambda redis: redis.command("FLUSHALL"))
    return running_redis


@pytest.fixture
def settings_of(shop: Shop, tmp_path: Path) -> Callable[..., SidecarSettings]:
    """`settings_of(**changes)` → settings of a sidecar that takes seconds."""

    def make(**changes: Any) -> SidecarSettings:
        given: dict[str, Any] = {
            "dataset": shop.dataset,
            "state": tmp_path / "state",
            "min_clicks": 20,
            "settle_s": 0.0,
            "sft": SMALL_STAGE,
            "beam_width": 16,
            "gate": SMALL_GATE,
        }
        return SidecarSettings(**given | changes)

    return make


@pytest.fixture
def once(
    shop: Shop, empty_redis: EmbeddedServer, on_redis: Callable[..., Any]
) -> Callable[..., Any]:
    """`once(settings)` → the round that a sidecar ended, or None."""
    gateway = Settings(registry=shop.registry, redis_url=empty_redis.url)

    def run(settings: SidecarSettings) -> Any:
        def work(redis: RedisConnection) -> Awaitable[Any]:
            log = make_logger("error", io.StringIO())
            registry = Registry(shop.registry)
            return Sidecar(registry, redis, settings, gateway, log, SidecarMetrics()).once()

        return on_redis(work)

    return run


Searches = Sequence[tuple[str, str, Sequence[str], Sequence[str]]]


@pytest.fixture
def behave(empty_redis: EmbeddedServer, on_redis: Callable[..., Any]) -> Callable[..., None]:
    """`behave([(user, query, items shown, items clicked), …])` writes it as a gateway does."""

    def write(searches: Searches, prefix: str = "s", simulated: bool = True) -> None:
        async def work(redis: RedisConnection) -> None:
            log = BehaviourLog(redis, Keys(), 3600.0, 50)
            now = time.time()
            exposures = [
                Exposure(
                    "",
                    "champion",
                    f"user:{user}",
                    f"{prefix}{number}",
                    now,
                    tuple(shown),
                    query,
                    None,
                    0,
                    "m",
                    "i",
                    simulated,
                )
                for number, (user, query, shown, _) in enumerate(searches)
            ]
            events = [
                Event(
                    f"{prefix}{number}-{item}",
                    "click",
                    f"{prefix}{number}",
                    item,
                    user,
                    now + 1,
                    None,
                    simulated,
                )
                for number, (user, _, _, clicked) in enumerate(searches)
                for item in clicked
            ]
            await log.write(exposures, f"{prefix}-batch")
            await log.take(events)

        on_redis(work)

    return write


@pytest.fixture
def liked(shop: Shop) -> Callable[..., Searches]:
    """`liked(n)` → searches of many users who click what judges find best; `worst` the opposite."""
    dataset, snapshot = Dataset.open(shop.judged), Registry(shop.registry).choose().snapshot
    graded: dict[str, list[tuple[float, str]]] = {}
    for row in dataset.judgments.to_pylist():
        graded.setdefault(row["query"], []).append((row["grade"], row["item_id"]))
    queries = sorted(graded)
    items = Snapshot.open(snapshot).items

    def make(count: int, worst: bool = False, seed: int = 3) -> Searches:
        random = np.random.default_rng(seed)
        found: list[tuple[str, str, Sequence[str], Sequence[str]]] = []
        for number in range(count):
            query = queries[number % len(queries)]
            ranked = [item for _, item in sorted(graded[query], reverse=not worst)]
            others = items.item_ids(random.choice(len(items), 7, replace=False))
            clicked = ranked[:1]
            shown = list(dict.fromkeys([*ranked[-3:], *others, *clicked]))
            found.append((f"simulated-{number % 40}", query, shown, clicked))
        return found

    return make
