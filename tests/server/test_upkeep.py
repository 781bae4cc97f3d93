"""A server compacts its catalogue into new generations while it is searched and changed."""

import asyncio
import io
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.registry import promotion
from models.registry.publication import publish
from models.registry.registry import Registry
from server.app import create_app
from server.choice import choose_registered
from server.cli.main import main
from server.logs import make_logger
from server.metrics import Metrics
from server.rollout_start import start_rollout
from server.settings import Settings
from tests.server.followed import until

ITEMS = "/v1/items"
BUILT = {"brand": ["Acme", "Nord"]}
"""Filters that let items i0 … i34 through."""
Started = Callable[..., httpx.Client]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch):
    """What a server does from time to time it does all the time."""
    monkeypatch.setattr("server.upkeep.LOOK_S", 0.05)


@pytest.fixture
def registry(tiny_pair: tuple[Path, Path], tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    promotion.promote(registry, publish(registry, *tiny_pair).record.version)
    return registry


@pytest.fixture
def follow(registry: Registry, start_server: Callable[[Any], httpx.Client]) -> Started:
    """`follow(**settings)` → a client of a server that follows the registry."""

    def start(**changes: Any) -> httpx.Client:
        settings = Settings(
            registry=registry.path, engine_threads=1, beam_width=1024, patience=0, **changes
        )
        metrics, log = Metrics(), make_logger("error", io.StringIO())
        registered = choose_registered(settings)
        assert registered is not None
        pipeline, rollout = asyncio.run(start_rollout(settings, registered, metrics, log))
        return start_server(
            create_app(pipeline, settings, metrics=metrics, log=log, rollout=rollout)
        )

    return start


def found(client: httpx.Client, **fields: Any) -> set[str]:
    answer = client.post("/v1/search", json={"query": "desk", "limit": 100, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.json()["degraded"] == []
    return {hit["item_id"] for hit in answer.json()["hits"]}


def metric(client: httpx.Client, name: str) -> float:
    match = re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert match is not None, name
    return float(match.group(1))


def test_compactions_beside_searches_and_changes_lose_nothing(registry: Registry, follow: Started):
    client = follow(compaction_changes=20)
    first = registry.aliases().champion
    base_url, stop = client.base_url, threading.Event()

    def search() -> int:
        asked = 0
        with httpx.Client(base_url=base_url, timeout=30) as own:
            while not stop.wait(0.05):
                assert found(own, filters=BUILT) == {f"i{number}" for number in range(1, 35)}
                asked += 1
        return asked

    client.delete(f"{ITEMS}/i0").raise_for_status()
    with ThreadPoolExecutor(1) as threads:
        searching = [threads.submit(search)]
        try:
            number, seen = 0, set[str | None]()
            while len(seen) < 3:
                brand = f"Brand {number}"
                item = {"item_id": f"n{number}", "title": f"red desk {number}", "brand": brand}
                client.put(ITEMS, json={"items": [item]}).raise_for_status()
                if number % 3 == 0:
                    client.delete(f"{ITEMS}/n{number}").raise_for_status()
                expected = {f"n{number}"} if number % 3 else set[str]()
                assert found(client, filters={"brand": [brand]}) == expected
                seen.add(client.get("/readyz").json()["generation"]["version"])
                number += 1
                # On a busy machine the compaction needs its share.
                time.sleep(0.05)
                assert number < 5_000
        finally:
            stop.set()
        assert sum(one.result() for one in searching) > 3
    kept = {f"i{one}" for one in range(1, 36)} | {f"n{one}" for one in range(number) if one % 3}
    assert client.get("/readyz").json()["items"] == len(kept)
    assert all(client.get(f"{ITEMS}/{one}").status_code == 200 for one in list(kept)[:50])
    assert metric(client, "onesearch_catalogue_compactions_total") >= 2
    assert metric(client, "onesearch_catalogue_compaction_failed") == 0
    champion = registry.record(str(registry.aliases().champion))
    assert champion.version != first
    assert registry.aliases().previous is None
    # What a server comes up on afterwards has all that was acknowledged, too.
    sequence = client.get("/readyz").json()["catalogue"]["sequence"]
    reader = follow(catalogue_changes=False)
    facts = reader.get("/readyz").json()
    assert [facts["items"], facts["index_version"]] == [
        len(kept),
        f"{champion.catalogue_origin}+{sequence}",
    ]


def test_the_command_compacts_beside_a_server(
    registry: Registry, follow: Started, capsys: pytest.CaptureFixture[str]
):
    client, first = follow(), registry.aliases().champion
    reader = follow(catalogue_changes=False)
    client.delete(f"{ITEMS}/i0").raise_for_status()
    client.put(ITEMS, json={"items": [{"item_id": "n", "title": "oak desk"}]}).raise_for_status()
    assert "i0" in found(reader)
    command = ["index", "compact", "--registry", str(registry.path)]
    assert main([*command, "--changes", "3"]) == 0
    assert "not due: 2 changes" in capsys.readouterr().out
    assert main([*command, "--why", "nightly"]) == 0
    assert "36 items through change 2" in capsys.readouterr().out
    made = registry.aliases().champion
    assert made != first
    for one in (client, reader):
        until(lambda one=one: one.get("/readyz").json()["generation"]["version"] == made)
        assert found(one) == {f"i{number}" for number in range(1, 36)} | {"n"}
    # Changes go on where they were, and go along when the old generation comes back.
    client.delete(f"{ITEMS}/i1").raise_for_status()
    assert client.post(f"/admin/generations/{first}:promote", json={}).status_code == 200
    assert {"i0", "i1"} & found(client) == set()
    assert client.delete(f"{ITEMS}/i2").json()["sequence"] == 4


def test_a_generation_with_changes_from_another_place_is_not_taken(
    registry: Registry, follow: Started, tmp_path: Path
):
    client = follow()
    elsewhere = Registry(Path(shutil.copytree(registry.path, tmp_path / "elsewhere")))
    other = str(elsewhere.aliases().champion)
    live = tmp_path / "elsewhere" / "snapshots"
    [snapshot] = [path for path in live.iterdir() if path.suffix != ".live"]
    assert main(["index", "remove", str(snapshot), "i0", "i1"]) == 0
    assert main(["index", "compact", "--registry", str(elsewhere.path)]) == 0
    made = elsewhere.record(str(elsewhere.aliases().champion))
    assert made.version != other
    publish(registry, *elsewhere.paths(made))
    answer = client.post(f"/admin/generations/{made.version}:promote", json={})
    assert answer.status_code == 409
    assert "of another place" in answer.json()["detail"]
    assert len(found(client)) == 36
