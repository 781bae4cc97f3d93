"""A generation is promoted while searches run: each answer comes from exactly one."""

import asyncio
import io
import time
from dataclasses import replace
from pathlib import Path

import pytest

from decoding.native.engine import NativeEngine
from index.live.catalogue import CatalogueHeld, LiveCatalogue, LiveSettings
from index.live.changes import Delete
from index.snapshot import Snapshot
from server.context import InMemoryUserContexts
from server.errors import Problem
from server.generation import Generation, Generations
from server.logs import make_logger
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.schemas import SearchRequest, SearchResponse
from server.settings import Settings

SETTINGS = Settings(engine_threads=1, beam_width=64, timeout_s=20)


class GatedContexts(InMemoryUserContexts):
    """A pinned request of "waiting" stops before it prepares anything, until the gate opens."""

    def __init__(self) -> None:
        super().__init__(10, 10)
        self.entered, self.open = asyncio.Event(), asyncio.Event()

    async def history(self, user_id: str) -> tuple[str, ...]:
        if user_id == "waiting":
            self.entered.set()
            await self.open.wait()
        return ()


@pytest.fixture(scope="module")
def pair(generation: Generation, other_snapshot: Path) -> tuple[Generation, Generation]:
    """Two generations of different codecs: another trie, another prior, other prompts."""
    snapshot = Snapshot.open(other_snapshot)
    settings = replace(generation.checkpoint.settings, codec_id=snapshot.codec.id)
    other = Generation.of(snapshot, replace(generation.checkpoint, settings=settings))
    return generation.with_runner(), other.with_runner()


async def start(first: Generation, contexts: InMemoryUserContexts, metrics: Metrics) -> Pipeline:
    assert first.runner is not None
    engine = await NativeEngine(first.runner, threads=1).start()
    log = make_logger("error", io.StringIO())
    return Pipeline(Generations(first), engine, contexts, SETTINGS, metrics, log)


async def search(pipeline: Pipeline, user_id: str = "u") -> SearchResponse:
    request = SearchRequest(query="red oak desk", user_id=user_id, limit=36, explain=True)
    return await pipeline.search(request, "r", time.monotonic() + 20)


def check_same(found: SearchResponse, truth: SearchResponse) -> None:
    assert found.degraded == []
    assert found.index_version == truth.index_version
    assert {hit.item_id: hit.sid for hit in found.hits} == {
        hit.item_id: hit.sid for hit in truth.hits
    }
    scores = {hit.item_id: hit.score for hit in truth.hits}
    for hit in found.hits:
        assert hit.score == pytest.approx(scores[hit.item_id], abs=1e-3)


def test_a_pinned_search_ends_on_its_generation(pair: tuple[Generation, Generation]):
    async def scenario() -> None:
        contexts, metrics = GatedContexts(), Metrics()
        pipeline = await start(pair[0], contexts, metrics)
        metrics.observe(pipeline, "v")
        truth = await search(pipeline)
        waiting = asyncio.create_task(search(pipeline, "waiting"))
        await contexts.entered.wait()
        drained = await pipeline.promote(pair[1])
        assert not drained.is_set()
        after = await search(pipeline)
        assert after.index_version == pair[1].view.version != truth.index_version
        assert after.hits != truth.hits
        assert f'index_version="{pair[1].view.version}"' in metrics.exposition().decode()
        contexts.open.set()
        check_same(await waiting, truth)
        assert drained.is_set()
        await pipeline.close()

    asyncio.run(scenario())


def test_searches_during_promotions_mix_nothing(pair: tuple[Generation, Generation]):
    async def scenario() -> None:
        pipeline = await start(pair[0], InMemoryUserContexts(10, 10), Metrics())
        truth: dict[str, SearchResponse] = {}
        for generation in (pair[1], pair[0]):
            await pipeline.promote(generation)
            answer = await search(pipeline)
            truth[answer.index_version] = answer
        stop, seen = asyncio.Event(), dict.fromkeys(truth, 0)

        async def client() -> None:
            while not stop.is_set():
                found = await search(pipeline)
                check_same(found, truth[found.index_version])
                seen[found.index_version] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(client())
            for turn in range(10):
                await asyncio.sleep(0.02)
                await pipeline.promote(pair[(turn + 1) % 2])
            stop.set()
        assert min(seen.values()) > 0
        await pipeline.close()

    asyncio.run(scenario())


def test_promoting_new_weights_keeps_the_catalogue_another_snapshot_brings_its_own(
    own_pair: tuple[Path, Path], pair: tuple[Generation, Generation]
):
    async def scenario() -> None:
        live = Generation.open(*own_pair, changes=LiveSettings()).with_runner()
        pipeline = await start(live, InMemoryUserContexts(10, 10), Metrics())
        await pipeline.change([Delete("i0")])
        drained = await pipeline.promote(Generation.open(*own_pair).with_runner())
        assert drained.is_set()
        outcome = await pipeline.change([Delete("i1"), Delete("none")])
        assert [outcome.sequence, outcome.applied] == [2, 1]
        found = await search(pipeline)
        assert found.index_version == outcome.index_version
        assert {hit.item_id for hit in found.hits} == {f"i{n}" for n in range(2, 36)}
        await pipeline.promote(pair[1])
        assert len((await search(pipeline)).hits) == 36
        with pytest.raises(Problem, match="only reads"):
            await pipeline.change([Delete("i2")])
        for _ in range(1000):
            if is_free(own_pair[0]):
                break
            await asyncio.sleep(0.01)
        assert is_free(own_pair[0])
        await pipeline.close()

    asyncio.run(scenario())


def is_free(snapshot: Path) -> bool:
    """Whether nobody has the snapshot's catalogue open for changes."""
    try:
        LiveCatalogue.open(snapshot).close()
    except CatalogueHeld:
        return False
    return True
