"""A server follows a registry: swap, roll back, refuse, converge, and mix nothing."""

import asyncio
import gc
import io
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

import server.memory
from decoding.native.engine import NativeEngine
from index.errors import ConfigError
from index.snapshot import Snapshot
from models.registry import promotion
from models.registry.registry import Provenance, Registry
from server.choice import choose_registered
from server.golden import SAMPLED_TITLES
from server.logs import make_logger
from server.metrics import Metrics
from server.rollout_start import start_rollout
from server.settings import Settings
from tests.server.followed import QUERY, ask, live, until


def tables(published: Any) -> dict[tuple[str, str], dict[str, str]]:
    """(model version, index version) → item id → SID, of every generation's own snapshot."""
    registry, found = published.registry, dict[tuple[str, str], dict[str, str]]()
    for record in registry.records()[0]:
        snapshot = Snapshot.open(registry.paths(record)[0], verify=False)
        codes = snapshot.trie.codes_of_leaves(snapshot.postings.leaf_of_row)
        ids = snapshot.items.item_ids(range(len(snapshot.items)))
        sids = {item: snapshot.layout.format(row) for item, row in zip(ids, codes, strict=True)}
        found[record.pairing.checkpoint, record.pairing.snapshot] = sids
    return found


def test_searches_during_swaps_never_fail_and_never_mix(
    published: Any, follow: Callable[..., httpx.Client]
):
    client, own = follow(), tables(published)
    truth: dict[tuple[str, str], dict[str, float]] = {}
    for version in (published.second, published.foreign, published.first):
        assert ask(client, version, "promote").status_code == 200
        found = client.post("/v1/search", json=QUERY).json()
        scores = {hit["item_id"]: hit["score"] for hit in found["hits"]}
        truth[found["model_version"], found["index_version"]] = scores
    assert len(truth) == 3
    stop, seen = threading.Event(), dict.fromkeys(truth, 0)

    def search() -> int:
        with httpx.Client(base_url=client.base_url, timeout=30) as own_client:
            asked = 0
            while not stop.is_set():
                answer = own_client.post("/v1/search", json=QUERY)
                assert answer.status_code == 200
                found = answer.json()
                assert found["degraded"] == []
                which = found["model_version"], found["index_version"]
                assert {hit["item_id"]: hit["sid"] for hit in found["hits"]} == own[which]
                for hit in found["hits"]:
                    assert hit["score"] == pytest.approx(truth[which][hit["item_id"]], abs=1e-3)
                seen[which] += 1
                asked += 1
            return asked

    with ThreadPoolExecutor(2) as threads:
        searches = [threads.submit(search) for _ in range(2)]
        try:
            for version in (published.second, published.foreign, published.first, published.second):
                before = sum(seen.values())
                promoted = ask(client, version, "promote", who="ann", why="because")
                assert promoted.json()["live"]["version"] == version
                until(lambda before=before: sum(seen.values()) >= before + 4)
            back = ask(client, "champion", "rollback", why="p99 doubled")
            assert back.json()["live"] == live(client)
            assert live(client)["version"] == published.first
        finally:
            stop.set()
        assert sum(one.result() for one in searches) > 20
    assert min(seen.values()) > 0
    events = published.registry.events()
    assert [events[-1][key] for key in ("what", "champion", "why")] == [
        "rollback",
        published.first,
        "p99 doubled",
    ]
    assert [events[-2][key] for key in ("what", "who", "why")] == ["promote", "ann", "because"]


def test_load_ahead_promote_and_roll_back(published: Any, follow: Callable[..., httpx.Client]):
    client = follow()
    loaded = ask(client, published.second[:6], "load").json()
    assert [one["version"] for one in loaded["loaded"]] == [published.first, published.second]
    assert loaded["loaded"][1]["golden"]["answered"] == loaded["loaded"][1]["golden"]["queries"]
    assert loaded["live"]["version"] == published.first
    held = {lease.generation for lease in published.registry.leases()}
    assert held == {published.first, published.second}
    promoted = ask(client, published.second, "promote", expected_champion="champion").json()
    assert promoted["live"]["alias"] == "champion"
    assert "open" not in promoted["last_change_ms"]
    assert client.get("/v1/models").json()["models"][0]["generation"] == promoted["live"]
    metrics = client.get("/metrics").text
    assert f'alias="champion",generation="{published.second}"' in metrics
    assert "onesearch_generation_promotions_total 1.0" in metrics
    moved = ask(client, published.first, "promote", expected_champion=published.first)
    assert [moved.status_code, moved.json()["type"]] == [409, "/problems/champion-moved"]
    # The one before is still in memory, so this is only a flip.
    back = ask(client, published.second, "rollback").json()
    assert back["live"]["version"] == published.first
    assert list(back["last_change_ms"]) == ["warm_up", "decide", "flip"]
    again = ask(client, published.second, "rollback")
    assert again.json()["type"] == "/problems/champion-moved"
    known = client.get("/admin/generations").json()
    assert {one["version"]: one["aliases"] for one in known["generations"]} == {
        published.first: ["champion"],
        published.second: ["previous"],
        published.foreign: [],
    }


def test_the_catalogues_changes_are_carried_over_and_another_snapshot_has_its_own(
    published: Any, follow: Callable[..., httpx.Client], tmp_path: Path
):
    client = follow(catalogue_changes=True, live_directory=tmp_path / "live")
    for item in ("i0", "i1"):
        assert client.delete(f"/v1/items/{item}").status_code == 200
        version = published.second if item == "i0" else published.first
        assert ask(client, version, "promote").status_code == 200
    assert client.get("/readyz").json()["items"] == 34
    assert ask(client, published.foreign, "promote").status_code == 200
    assert client.get("/readyz").json()["items"] == 36
    assert client.delete("/v1/items/i2").status_code == 200
    assert ask(client, "champion", "rollback").status_code == 200
    assert client.get("/readyz").json()["items"] == 34
    assert client.delete("/v1/items/i3").status_code == 200


def test_what_cannot_be_served_is_refused_and_the_champion_serves_on(
    published: Any,
    follow: Callable[..., httpx.Client],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    golden = tmp_path / "golden.txt"
    golden.write_text("red oak desk\n\nno such words\n")
    client, registry = follow(golden_queries=golden), published.registry
    missing = ask(client, "0000000", "promote")
    assert [missing.status_code, missing.json()["type"]] == [404, "/problems/generation-not-found"]

    def refused(version: str, what: str = "promote") -> str:
        answer = ask(client, version, what)
        assert [answer.status_code, answer.json()["type"]] == [409, "/problems/generation-refused"]
        assert str(published.path) not in answer.text
        assert live(client)["version"] == published.first
        assert registry.aliases().champion == published.first
        assert client.post("/v1/search", json=QUERY).json()["degraded"] == []
        return answer.json()["detail"]

    _, checkpoint = registry.paths(registry.record(published.second))
    weights = checkpoint / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert f"checkpoints/{checkpoint.name}/model.safetensors" in refused(published.second)
    weights.unlink()
    assert "model.safetensors" in refused(published.second, "load")
    weights.write_bytes(whole)
    monkeypatch.setattr(server.memory, "RESERVE_BYTES", 1 << 60)
    assert "are available" in refused(published.second)
    monkeypatch.undo()
    assert {lease.generation for lease in registry.leases()} == {published.first}
    assert ask(client, published.second, "load").json()["loaded"][1]["golden"]["queries"] == 2
    assert "onesearch_generation_refusals_total 3.0" in client.get("/metrics").text


def test_a_generation_that_finds_too_little_is_not_taken(
    published: Any, follow: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
):
    async def nothing(*_: Any) -> tuple[list[Any], tuple[str, ...]]:
        return [], ()

    client = follow()
    monkeypatch.setattr("server.pipeline.Pipeline.try_out", nothing)
    answer = ask(client, published.second, "promote")
    assert f"0 of {SAMPLED_TITLES} found something, the floor is 0.9" in answer.json()["detail"]
    assert live(client)["version"] == published.first


def test_an_engine_with_one_set_of_weights_is_tried_between_its_swap_and_the_flip(
    published: Any, follow: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
):
    swapped: list[Any] = []
    swap = NativeEngine.swap

    async def watched(engine: NativeEngine, runner: Any) -> None:
        swapped.append(runner)
        await swap(engine, runner)

    async def nothing(*_: Any) -> tuple[list[Any], tuple[str, ...]]:
        assert len(swapped) == 1
        return [], ()

    monkeypatch.setattr("server.rollout_loading.Loading.tries_beside", False)
    monkeypatch.setattr(NativeEngine, "swap", watched)
    client = follow()
    with monkeypatch.context() as patch:
        patch.setattr("server.pipeline.Pipeline.try_out", nothing)
        refused = ask(client, published.second, "promote").json()
        assert f"0 of {SAMPLED_TITLES} found" in refused["detail"]
    assert live(client)["version"] == published.registry.aliases().champion == published.first
    # The new weights, then the old ones again.
    assert [len(swapped), swapped[0] is swapped[1]] == [2, False]
    promoted = ask(client, published.second, "promote").json()
    assert promoted["loaded"][0]["golden"]["answered"] == SAMPLED_TITLES
    assert list(promoted["last_change_ms"]) == ["verify", "warm_up", "golden", "decide", "flip"]


def test_three_servers_converge_on_what_any_process_promotes(
    published: Any,
    following: Callable[..., Any],
    serve: Callable[[Any], AbstractContextManager[str]],
):
    with (
        serve(following()) as one,
        serve(following()) as two,
        serve(following()) as three,
        httpx.Client(timeout=60) as client,
    ):
        urls = (one, two, three)

        def served() -> set[str]:
            answers = [client.get(f"{url}/readyz").json() for url in urls]
            return {answer["generation"]["version"] for answer in answers}

        promotion.promote(published.registry, published.foreign)
        until(lambda: served() == {published.foreign})
        promotion.rollback(published.registry)
        until(lambda: served() == {published.first})
        promoted = client.post(f"{one}/admin/generations/{published.second}:promote", json={})
        assert promoted.status_code == 200
        until(lambda: served() == {published.second})


@pytest.mark.parametrize("part", ["snapshot", "checkpoint"])
def test_what_was_damaged_on_the_disk_after_it_was_loaded_is_not_promoted(
    published: Any, follow: Callable[..., httpx.Client], part: str
):
    client, registry = follow(), published.registry
    assert ask(client, published.second, "load").status_code == 200
    snapshot, checkpoint = registry.paths(registry.record(published.second))
    directory = {"snapshot": snapshot, "checkpoint": checkpoint}[part]
    file = max(
        (one for one in directory.rglob("*") if one.is_file() and one.name != "manifest.json"),
        key=lambda one: one.stat().st_size,
    )
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused = ask(client, published.second, "promote")
    assert [refused.status_code, file.name in refused.text] == [409, True]
    assert live(client)["version"] == registry.aliases().champion == published.first
    file.write_bytes(whole)
    assert ask(client, published.second, "promote").status_code == 200


def test_a_restart_comes_up_on_the_champion_or_on_previous_and_says_so(
    published: Any, follow: Callable[..., httpx.Client]
):
    registry = published.registry
    promotion.promote(registry, published.second)
    assert live(follow())["version"] == published.second
    _, checkpoint = registry.paths(registry.record(published.second))
    (checkpoint / "manifest.json").write_text("{")
    client = follow()
    told = live(client)
    assert [told["version"], told["alias"]] == [published.first, "previous"]
    assert f"champion {published.second}" in told["problem"]
    # What serves may be made champion.
    assert ask(client, published.first, "promote").json()["live"]["alias"] == "champion"
    assert live(client)["problem"] == ""


def test_what_is_served_without_a_registry(published: Any, tmp_path: Path, plain: Any):
    champion = tmp_path / "champion.json"
    assert choose_registered(Settings(registry=tmp_path / "none")) is None
    assert choose_registered(Settings(champion=champion)) is None
    both = Settings(champion=champion, registry=published.path)
    assert choose_registered(both) is not None
    given = Settings(registry=published.path, snapshot=tmp_path, checkpoint=tmp_path)
    assert choose_registered(given) is None
    empty = Registry(tmp_path / "empty")
    empty.make()
    with pytest.raises(ConfigError, match="has no champion"):
        choose_registered(Settings(registry=empty.path, champion=champion))
    champion.write_text("{}")
    assert choose_registered(Settings(registry=empty.path, champion=champion)) is None
    answer = plain.get("/admin/generations")
    assert [answer.status_code, answer.json()["type"]] == [409, "/problems/no-registry"]


@pytest.mark.parametrize("when", ["while it starts", "before its own canary"])
def test_a_promotion_by_others_that_was_never_looked_at_is_followed(published: Any, when: str):
    async def scenario() -> None:
        registry = published.registry
        settings = Settings(registry=published.path, engine_threads=1, catalogue_changes=False)
        registered = choose_registered(settings)
        assert registered is not None
        if when == "while it starts":
            promotion.promote(registry, published.second)
        log = make_logger("error", io.StringIO())
        pipeline, rollout = await start_rollout(settings, registered, Metrics(), log)
        if when == "before its own canary":
            promotion.promote(registry, published.second)
            await rollout.canary(published.foreign, 0.5, "", Provenance())
        assert rollout.loaded[0].version == published.first
        await rollout.converge()
        assert rollout.loaded[0].version == published.second
        assert rollout.status().problem == ""
        await rollout.close()
        await pipeline.close()

    asyncio.run(scenario())


def test_a_generation_leaves_memory_with_its_last_search(published: Any):
    async def scenario() -> None:
        settings = Settings(registry=published.path, engine_threads=1, catalogue_changes=False)
        registered = choose_registered(settings)
        assert registered is not None
        log = make_logger("error", io.StringIO())
        pipeline, rollout = await start_rollout(settings, registered, Metrics(), log)
        weights = weakref.ref(pipeline.live.runner.weights.level_output[0])
        # In the end only what is live and the one before it are in memory.
        await rollout.promote(published.second, Provenance())
        assert weights() is not None
        await rollout.promote(published.foreign, Provenance())
        await rollout.promote(published.second, Provenance())
        assert weights() is None
        assert len(published.registry.leases()) == 2
        await rollout.close()
        await pipeline.close()
        assert published.registry.leases() == []

    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()
