"""An experiment from end to end: simulated users visit a real server with a canary, their exposures
and events are exported, and the report finds what was planted."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from index.dataset import write_dataset
from models.registry.canary import start_canary
from server.app import create_app
from server.choice import choose_registered
from server.cli.main import main
from server.events.behaviour import start_behaviour
from server.events.joined import join
from server.events.log import pages_after
from server.events.records import Log
from server.events.segments import rows_after
from server.logs import make_logger
from server.metrics import Metrics
from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer, find_binary
from server.redis.keys import Keys
from server.rollout_start import start_rollout
from server.settings import Settings

USERS = 160
LOADED_S = 60.0
QUERIES = ("red oak desk", "black steel lamp", "white glass shelf", "oak chair", "lamp")
ITEMS = [f"i{number}" for number in range(36)]
EXPERIMENT = "visits"


class Visited(NamedTuple):
    """What the simulated users say that they did, and where the export and the dataset are."""

    told: dict[str, Any]
    export: Path
    dataset: Path


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Generator[EmbeddedServer, None, None]:
    server = EmbeddedServer(tmp_path_factory.mktemp("redis"), find_binary())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def environment(own_redis: EmbeddedServer) -> Generator[None, None, None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESEARCH_REDIS_URL", own_redis.url)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nearly everything is liked, so that few visits give many clicks."""
    path = tmp_path_factory.mktemp("visits") / "dataset"
    judgments = [
        {"query": query, "item_id": item, "grade": float(number % 9 > 0) * 3}
        for query in QUERIES
        for number, item in enumerate(ITEMS)
    ]
    facts = [
        {"item_id": item, "title": item, "category": ["home"], "popularity": float(number)}
        for number, item in enumerate(ITEMS)
    ]
    write_dataset(path, items=facts, judgments=judgments, simulated=True)
    return path


@pytest.fixture(scope="module")
def url(
    filled: Any, own_redis: EmbeddedServer, serve: Any, tmp_path_factory: pytest.TempPathFactory
) -> Generator[str, None, None]:
    """A server that follows a registry, half of its users answered by the challenger."""
    registry = tmp_path_factory.mktemp("served") / "registry"
    shutil.copytree(filled.path, registry)
    published = filled._replace(path=registry)
    start_canary(published.registry, published.second, 0.5, experiment=EXPERIMENT)
    settings = Settings(
        registry=registry,
        redis_url=own_redis.url,
        events=True,
        catalogue_changes=False,
        engine_threads=1,
        beam_width=16,
        patience=0,
        # Half of the searches of a busy machine are no judgement on a generation.
        rollback_window_s=0,
    )
    metrics, log = Metrics(), make_logger("error", io.StringIO())
    registered = choose_registered(settings)
    assert registered is not None

    async def parts() -> Any:
        behaviour = await start_behaviour(settings, metrics, log)
        assert behaviour is not None
        contexts = behaviour.contexts
        return behaviour, *await start_rollout(settings, registered, metrics, log, contexts)

    behaviour, pipeline, rollout = asyncio.run(parts())
    app = create_app(
        pipeline, settings, metrics=metrics, log=log, rollout=rollout, behaviour=behaviour
    )
    started: AbstractContextManager[str] = serve(app)
    with started as url:
        until = time.monotonic() + LOADED_S
        while httpx.post(f"{url}/v1/search", json={"query": "desk"}).json()["arm"] is None:
            # The challenger is loaded beside the champion meanwhile.
            assert time.monotonic() < until
        yield url


@pytest.fixture(scope="module")
def visited(
    url: str, environment: None, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Visited:
    told = run("experiment", "simulate", "--server", url, "--dataset", str(dataset), *OPTIONS)
    export = tmp_path_factory.mktemp("export")
    # Exposures are written some time soon: the last of them too before the comparison begins.
    while len(exported(export, Log.EXPOSURES, "request_id")) < told["searches"]:
        run("events", "export", str(export))
    return Visited(told, export, dataset)


OPTIONS = ("--users", str(USERS), "--searches", "2.5", "--lift", "2.0")


def run(*arguments: str) -> dict[str, Any]:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        assert main([*arguments, "--json"]) == 0
    return json.loads(out.getvalue())


def exported(directory: Path, log: Log, column: str) -> list[Any]:
    """Of the visits' own: the test's first searches have no user."""
    found = list[Any]()
    for rows, _ in rows_after(directory, log):
        own = rows
        if log is Log.EXPOSURES:
            own = rows.filter(pc.starts_with(rows.column("unit"), "user:"))
        found += own.column(column).to_pylist()
    return found


def report(visited: Visited, *arguments: str, export: Path | None = None) -> dict[str, Any]:
    folder = str(export or visited.export)
    files = ("--exposures", folder, "--events", folder, "--items", str(visited.dataset))
    return run("experiment", "report", *files, *arguments)


def test_exposures_and_events_join_exactly(visited: Visited):
    told = visited.told
    assert told["simulated"]
    assert sum(told["arms"].values()) == told["searches"] > USERS
    assert told["clicks"] > 100
    requests = exported(visited.export, Log.EXPOSURES, "request_id")
    assert len(requests) == len(set(requests)) == told["searches"]
    assert set(exported(visited.export, Log.EVENTS, "request_id")) <= set(requests)
    kinds = exported(visited.export, Log.EVENTS, "kind")
    assert [kinds.count("click"), kinds.count("order")] == [told["clicks"], told["orders"]]
    assert set(exported(visited.export, Log.EVENTS, "simulated")) == {True}
    assert set(exported(visited.export, Log.EXPOSURES, "simulated")) == {True}
    # Users come back, and what they clicked before is known.
    assert max(exported(visited.export, Log.EXPOSURES, "history_items")) > 0
    tables = [
        pa.concat_tables(rows for rows, _ in rows_after(visited.export, log))
        for log in (Log.EXPOSURES, Log.EVENTS)
    ]
    joined = join(*tables)
    assert joined.unmatched == 0
    clicks = [row for row in joined.rows.to_pylist() if row["kind"] == "click"]
    assert len(clicks) == told["clicks"]


def test_the_report_finds_the_planted_lift(visited: Visited, tmp_path: Path):
    found = report(visited, "--out", str(tmp_path))
    assert [found["experiment"], found["simulated"], found["trustworthy"]] == [
        EXPERIMENT,
        True,
        True,
    ]
    arms = found["arms"]
    pages = {arm: facts["pages"] for arm, facts in arms.items()}
    # And the one search that told that the challenger was there.
    assert sum(pages.values()) == visited.told["searches"] + 1
    assert all(0 <= pages[arm] - count <= 1 for arm, count in visited.told["arms"].items())
    assert sum(facts["clicks"] for facts in arms.values()) == visited.told["clicks"]
    assert sum(facts["orders"] for facts in arms.values()) == visited.told["orders"]
    [ctr] = [row for row in found["comparisons"] if row["metric"] == "item_ctr"]
    assert ctr["significant"]
    assert ctr["lift"] > 0
    assert ctr["ci95"][0] < 2.0 < ctr["ci95"][1]
    segments = {(row["segment"], row["value"]) for row in found["segments"]}
    assert {kind for kind, _ in segments} == {"query", "user", "item", "category"}
    assert {("user", "new"), ("query", "head"), ("item", "cold"), ("category", "home")} <= segments
    assert not any("events name no shown item" in note for note in found["notes"])
    assert (tmp_path / "lifts.svg").exists()


def test_a_broken_assignment_is_caught(visited: Visited, tmp_path: Path):
    """Two thirds of the challenger's users never reach the log."""
    shutil.copytree(visited.export, tmp_path / "export")
    for file in (tmp_path / "export" / "exposures").glob("*.parquet"):
        rows = pq.read_table(file)
        lost = pa.array(
            row["arm"] == "challenger" and not row["unit"].endswith(("1", "4", "7"))
            for row in rows.to_pylist()
        )
        pq.write_table(rows.filter(pc.invert(lost)), file)
    found = report(visited, export=tmp_path / "export")
    assert not found["sample_ratio"]["ok"]
    assert not found["trustworthy"]


def test_the_stream_and_the_export_hold_the_same(
    visited: Visited, own_redis: EmbeddedServer, tmp_path: Path
):
    async def live() -> list[str]:
        redis = RedisConnection(own_redis.url, 5.0)
        try:
            pages = [page async for page in pages_after(redis, Keys(), Log.EVENTS)]
        finally:
            await redis.close()
        return [entry for page in pages for entry in page.rows.column("entry").to_pylist()]

    entries = asyncio.run(live())
    assert exported(visited.export, Log.EVENTS, "entry") == entries
    status = run("events", "status")
    assert status["events"]["entries"] == len(entries)
    assert status["exposures"]["bytes"] > 0
    assert run("events", "export", str(tmp_path), "--since", "1h")["events"]["rows"] == len(entries)
    assert run("events", "export", str(tmp_path))["events"]["rows"] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["experiment", "simulate"], "give a folder, or --server with --dataset"),
        (["experiment", "simulate", "--server", "http://x"], "give a folder, or --server with"),
        (["events", "export", "{}", "--since", "yesterday"], "is no time"),
        (["experiment", "report", "--exposures", "{}", "--events", "{}"], "neither a Parquet file"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([part.replace("{}", str(tmp_path)) for part in arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert told in line


def test_servers_that_cannot_be_visited(
    dataset: Path, plain: httpx.Client, capsys: pytest.CaptureFixture[str]
):
    visit = ["experiment", "simulate", "--dataset", str(dataset), "--users", "2", "--server"]
    assert main([*visit, "http://127.0.0.1:1"]) == 2
    assert "cannot be reached" in capsys.readouterr().err.splitlines()[-1]
    assert os.environ["ONESEARCH_EVENTS"] == "false"
