"""Caches: what they keep, and that nothing kept is used for another version."""

import asyncio
import io
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from index.snapshot import Snapshot
from models.checkpoint import Checkpoint, save_checkpoint
from models.registry import promotion
from models.registry.publication import publish
from models.registry.registry import Registry
from server.app import create_app
from server.cache import LruCache
from server.choice import choose_registered
from server.logs import make_logger
from server.metrics import Metrics
from server.rollout_start import start_rollout
from server.settings import Settings

Follow = Callable[..., httpx.Client]
QUERIES: list[dict[str, Any]] = [
    {"query": "red oak desk"},
    {"query": "steel lamp", "filters": {"color": ["red", "black"]}},
    {"query": "chair", "filters": {"in_stock": True, "price_max": 30}},
]


def test_the_least_recently_used_value_leaves():
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [cache.get("a"), cache.get("b"), cache.get("c")] == [1, None, 3]
    assert len(cache) == 2


@pytest.fixture(scope="module")
def registry(
    tiny_pair: tuple[Path, Path], other_snapshot: Path, tmp_path_factory: pytest.TempPathFactory
) -> Registry:
    """Two generations of the same items, other in everything else: encoder, codec, SIDs."""
    folder = tmp_path_factory.mktemp("caches")
    opened = Checkpoint.open(tiny_pair[1])
    foreign = replace(opened.settings, codec_id=Snapshot.open(other_snapshot).codec.id)
    save_checkpoint(folder / "foreign", opened.load_model(), opened.tokenizer, foreign, {})
    registry = Registry(folder / "registry")
    for pair in (tiny_pair, (other_snapshot, folder / "foreign")):
        promotion.promote(registry, publish(registry, *pair).record.version)
    return registry


@pytest.fixture
def follow(registry: Registry, start_server: Callable[[Any], httpx.Client]) -> Follow:
    """`follow(**settings)` → a client of a server that follows the registry."""

    def start(**changes: Any) -> httpx.Client:
        given = {"catalogue_changes": False} | changes
        settings = Settings(
            registry=registry.path, engine_threads=1, beam_width=64, patience=0, **given
        )
        metrics, log = Metrics(), make_logger("error", io.StringIO())
        registered = choose_registered(settings)
        assert registered is not None
        pipeline, rollout = asyncio.run(start_rollout(settings, registered, metrics, log))
        return start_server(
            create_app(pipeline, settings, metrics=metrics, log=log, rollout=rollout)
        )

    return start


def answers(client: httpx.Client) -> list[Any]:
    """What a server finds for all queries, with everything that made the order."""
    found: list[Any] = []
    for query in QUERIES:
        body = query | {"limit": 36, "explain": True}
        response = client.post("/v1/search", json=body)
        assert response.status_code == 200, response.text
        assert response.headers["cache-control"] == "no-store"
        answer = response.json()
        assert answer["degraded"] == []
        hits = [[hit["item_id"], hit["sid"], hit["explain"]] for hit in answer["hits"]]
        found.append([answer["model_version"], answer["index_version"], hits])
    return found


def metric(client: httpx.Client, name: str) -> float:
    match = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return 0.0 if match is None else float(match.group(1))


def test_nothing_of_another_generation_is_used(registry: Registry, follow: Follow):
    versions = registry.aliases()
    assert versions.champion is not None
    assert versions.previous is not None
    fresh: dict[str, list[Any]] = {}
    for version in (versions.previous, versions.champion):
        promotion.promote(registry, version)
        fresh[version] = answers(follow())
    assert fresh[versions.previous] != fresh[versions.champion]
    client = follow()
    hits = 'onesearch_cache_total{cache="query",result="hit"}'
    for turn in range(4):
        version = (versions.previous, versions.champion)[turn % 2]
        promotion.promote(registry, version)
        end = time.monotonic() + 30
        while client.get("/readyz").json()["generation"]["version"] != version:
            assert time.monotonic() < end
            time.sleep(0.02)
        # Twice: the second time from the caches.
        for _ in range(2):
            told = answers(client)
            assert [one[:2] for one in told] == [one[:2] for one in fresh[version]]
            for one, expected in zip(told, fresh[version], strict=True):
                assert [hit[:2] for hit in one[2]] == [hit[:2] for hit in expected[2]]
                for hit, wanted in zip(one[2], expected[2], strict=True):
                    assert hit[2]["features"] == pytest.approx(wanted[2]["features"], abs=1e-4)
    # Embeddings of both generations are kept beside each other: 8 rounds, 2 of them first ones.
    assert metric(client, hits) >= 6 * len(QUERIES)


def test_nothing_of_a_catalogue_before_a_change_is_used(
    changing: Callable[..., httpx.Client],
):
    client = changing(merge_min_items=3, merge_share=0.01)
    filters = {"color": ["purple"], "price_max": 50}

    def found() -> dict[str, float]:
        body = {"query": "stool", "limit": 100, "beam_width": 1024, "filters": filters}
        answer = client.post("/v1/search", json=body).json()
        assert answer["index_version"].endswith(f"+{sequence}") or not sequence
        return {hit["item_id"]: hit["price"] for hit in answer["hits"]}

    def change(method: str, **body: Any) -> int:
        response = client.request(method, "/v1/items", json=body)
        assert response.status_code == 200
        return response.json()["sequence"]

    sequence, expected = 0, dict[str, float]()
    turn, hits, end = 0, 0.0, time.monotonic() + 60
    while turn < 20 or not metric(client, "onesearch_catalogue_merges_total"):
        assert time.monotonic() < end
        # Before and after each change, and again: from the cache.
        assert [found(), found()] == [expected, expected]
        name = f"p{turn}"
        item = {"item_id": name, "title": "purple stool", "color": ["purple"], "price": 10.0}
        sequence = change("PUT", items=[item])
        expected[name] = 10.0
        assert [found(), found()] == [expected, expected]
        sequence = change("PATCH", items=[{"item_id": name, "price": 60.0 - turn % 30}])
        expected = {
            one: price
            for one, price in (expected | {name: 60.0 - turn % 30}).items()
            if price <= 50
        }
        assert [found(), found()] == [expected, expected]
        hits = max(hits, metric(client, 'onesearch_catalogue_filters_total{result="hit"}'))
        if turn % 3 == 2 or len(expected) > 30:
            gone = min(expected, default=name)
            sequence = change("DELETE", item_ids=[gone])
            expected.pop(gone, None)
        turn += 1
    assert hits > 0
