"""The whole gateway on vLLM: the same answers as on the native engine, and nothing left behind."""

import asyncio
import io
import shutil
import socket
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import orjson
import pytest
import torch

from decoding.native.engine import NativeEngine
from models.checkpoint import Checkpoint, save_checkpoint
from server.app import create_app
from server.context import InMemoryUserContexts
from server.generation import Generation, Generations
from server.logs import make_logger
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.schemas import SearchRequest, SearchResponse
from server.settings import Settings
from server.start import load_generation, start_engine

pytest.importorskip("vllm", reason="needs vLLM's environment: make test-vllm")

# vLLM and what it imports warn of themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

IDLE_S = 20
# What "auto" measures may be bfloat16: its scores are others.
NATIVE = Settings(
    engine_threads=1, engine_dtype="float32", patience=0, catalogue_changes=False, timeout_s=30
)


class Served(NamedTuple):
    """A gateway over `engine`, whose catalogue takes changes; `generation` is the live one."""

    url: str
    engine: Any
    generation: Generation
    settings: Settings


@pytest.fixture(scope="module")
def served(
    tiny_pair: Any,
    tmp_path_factory: pytest.TempPathFactory,
    serve: Callable[[Any], AbstractContextManager[str]],
) -> Generator[Served, None, None]:
    snapshot = tmp_path_factory.mktemp("vllm") / "snapshot"
    shutil.copytree(tiny_pair.snapshot, snapshot)
    settings = Settings(
        engine="vllm",
        engine_threads=1,
        patience=0,
        timeout_s=30,
        # What follows the engine may take its time: how fast this machine is, is not tested here.
        response_slack_s=10,
        vllm_cache_gb=0.25,
    )
    loaded = load_generation(settings, snapshot, tiny_pair.checkpoint)
    engine, generation = asyncio.run(start_engine(settings, loaded))
    metrics, log = Metrics(), make_logger("error", io.StringIO())
    pipeline = pipeline_of(engine, generation, settings, metrics)
    with serve(create_app(pipeline, settings, metrics=metrics, log=log)) as url:
        yield Served(url, engine, generation, settings)


@pytest.fixture
def client(served: Served) -> Generator[httpx.Client, None, None]:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def native(
    tiny_pair: Any, serve: Callable[[Any], AbstractContextManager[str]]
) -> Generator[httpx.Client, None, None]:
    generation = load_generation(NATIVE, *tiny_pair)
    engine, generation = asyncio.run(start_engine(NATIVE, generation))
    pipeline = pipeline_of(engine, generation, NATIVE, Metrics())
    app = create_app(pipeline, NATIVE, log=make_logger("error", io.StringIO()))
    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def pipeline_of(
    engine: Any, generation: Generation, settings: Settings, metrics: Metrics
) -> Pipeline:
    contexts, log = InMemoryUserContexts(10, 10), make_logger("error", io.StringIO())
    return Pipeline(Generations(generation), engine, contexts, settings, metrics, log)


def search(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/search", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def wait_until_idle(engine: Any) -> None:
    until = time.monotonic() + IDLE_S
    while engine.unanswered or engine.stats().running_prompts or engine.stats().queued_prompts:
        assert time.monotonic() < until, engine.stats()
        time.sleep(0.02)


@pytest.mark.parametrize("beam_width", [1, 8, 64])
@pytest.mark.parametrize(
    "filters", [None, {"color": ["red", "white"]}, {"brand": ["nord"], "price_max": 20}]
)
def test_answers_are_those_of_the_native_engine(
    client: httpx.Client, native: httpx.Client, beam_width: int, filters: Any
):
    asked = {
        "query": "red oak desk",
        "history": ["i3", "i7"],
        "limit": 36,
        "beam_width": beam_width,
        "filters": filters,
        "explain": True,
    }
    found, wanted = search(client, **asked), search(native, **asked)
    assert found["degraded"] == wanted["degraded"] == []
    assert found["model_version"] == wanted["model_version"]
    assert {hit["item_id"]: hit["sid"] for hit in found["hits"]} == {
        hit["item_id"]: hit["sid"] for hit in wanted["hits"]
    }
    features = {hit["item_id"]: hit["explain"]["features"] for hit in wanted["hits"]}
    for hit in found["hits"]:
        sid = features[hit["item_id"]]["sid"]
        assert hit["explain"]["features"]["sid"] == pytest.approx(sid, abs=1e-4)


def test_late_searches_are_answered_without_the_beam(client: httpx.Client, served: Served):
    before = served.engine.stats()
    with ThreadPoolExecutor(16) as threads:
        answers = list(
            threads.map(
                lambda _: search(client, query="red desk", beam_width=64, timeout_ms=30), range(32)
            )
        )
    late = [answer for answer in answers if answer["degraded"]]
    assert late
    assert {reason for answer in late for reason in answer["degraded"]} <= {
        "engine_deadline",
        "engine_overload",
    }
    assert all(answer["hits"] for answer in answers)
    wait_until_idle(served.engine)
    after = served.engine.stats()
    assert after.expired + after.shed + after.cancelled > (
        before.expired + before.shed + before.cancelled
    )
    assert search(client, query="red desk")["degraded"] == []


def test_who_leaves_leaves_nothing_behind(client: httpx.Client, served: Served):
    body = orjson.dumps({"query": "black steel lamp", "beam_width": 64})
    head = b"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    address = (httpx.URL(served.url).host, httpx.URL(served.url).port)
    cancelled = served.engine.stats().cancelled
    connections = [socket.create_connection(address, 10) for _ in range(12)]
    for connection in connections:
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    time.sleep(0.05)
    for connection in connections:
        connection.close()
    wait_until_idle(served.engine)
    assert served.engine.stats().cancelled > cancelled
    assert search(client, query="black steel lamp", beam_width=64)["degraded"] == []


def test_changes_of_the_catalogue_are_searched_at_once(client: httpx.Client):
    everything = {"query": "green cork stool", "limit": 100, "beam_width": 1024}
    before = search(client, **everything)
    items = [
        {"item_id": f"new{number}", "title": f"green cork stool {number}", "stock": 1}
        for number in range(5)
    ]
    assert client.put("/v1/items", json={"items": items}).json()["applied"] == 5
    found = search(client, **everything)
    assert found["degraded"] == []
    assert found["index_version"] != before["index_version"]
    added = {hit["item_id"] for hit in found["hits"]} - {hit["item_id"] for hit in before["hits"]}
    assert added == {item["item_id"] for item in items}
    for item in items:
        assert client.delete(f"/v1/items/{item['item_id']}").status_code == 200
    after = search(client, **everything)
    assert {hit["item_id"] for hit in after["hits"]} == {hit["item_id"] for hit in before["hits"]}


def test_metrics_are_those_of_every_engine(client: httpx.Client, native: httpx.Client):
    search(client, query="desk")

    def names(text: str) -> set[str]:
        begin = "# TYPE onesearch_engine_"
        return {line.split()[2] for line in text.splitlines() if line.startswith(begin)}

    text = client.get("/metrics").text
    assert names(text) == names(native.get("/metrics").text) != set()
    [prompts] = [
        line for line in text.splitlines() if line.startswith("onesearch_engine_prompts_total ")
    ]
    assert float(prompts.split()[1]) > 0


def test_a_generation_is_promoted_while_searches_run(
    served: Served, tiny_pair: Any, tmp_path: Path
):
    other = write_other_checkpoint(tmp_path / "other", tiny_pair.checkpoint)
    generations = [
        served.generation,
        load_generation(NATIVE, tiny_pair.snapshot, other).named(
            type(served.engine.live)(other, served.generation.view.base.trie)
        ),
    ]

    async def scenario() -> None:
        truth = {
            one.model_version: await native_answer(tiny_pair.snapshot, one.checkpoint.path)
            for one in generations
        }
        pipeline = pipeline_of(served.engine, generations[0], served.settings, Metrics())
        stop, seen = asyncio.Event(), dict.fromkeys(truth, 0)

        async def client() -> None:
            while not stop.is_set():
                found = await answer(pipeline)
                assert found.degraded == []
                check_same(found, truth[found.model_version])
                seen[found.model_version] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(client())
            for turn in range(4):
                await asyncio.sleep(0.3)
                await pipeline.promote(generations[(turn + 1) % 2])
            await asyncio.sleep(0.3)
            stop.set()
        assert min(seen.values()) > 3
        assert served.engine.stats().swaps == 4
        assert served.engine.stats().failed == 0

    asyncio.run(scenario())
    wait_until_idle(served.engine)


def write_other_checkpoint(path: Path, source: Path) -> Path:
    """The same model with other weights."""
    checkpoint = Checkpoint.open(source)
    model, generator = checkpoint.load_model(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_checkpoint(path, model, checkpoint.tokenizer, checkpoint.settings, {})
    return path


async def native_answer(snapshot: Path, checkpoint: Path) -> SearchResponse:
    generation = load_generation(NATIVE, snapshot, checkpoint)
    runner: Any = generation.runner
    engine = await NativeEngine(runner, threads=1).start()
    pipeline = pipeline_of(engine, generation, NATIVE, Metrics())
    found = await answer(pipeline)
    await pipeline.close()
    return found


async def answer(pipeline: Pipeline) -> SearchResponse:
    request = SearchRequest(query="red oak desk", limit=36, beam_width=12, explain=True)
    return await pipeline.search(request, "r", time.monotonic() + 30)


def check_same(found: SearchResponse, truth: SearchResponse) -> None:
    assert {hit.item_id: hit.sid for hit in found.hits} == {
        hit.item_id: hit.sid for hit in truth.hits
    }
    scores = {hit.item_id: hit.score for hit in truth.hits}
    for hit in found.hits:
        assert hit.score == pytest.approx(scores[hit.item_id], abs=1e-3)


def test_vllms_own_metrics_are_passed_on(served: Served):
    """Among ours, without a path in any label; and the engine's process is seen."""
    with httpx.Client(base_url=served.url, timeout=60) as client:
        assert client.post("/v1/search", json={"query": "red desk"}).status_code == 200
        lines = client.get("/metrics").text.splitlines()
    own = [line for line in lines if line.startswith("vllm:")]
    assert any(line.startswith("vllm:num_requests_running{") for line in own)
    assert any(line.startswith("vllm:prefix_cache_queries_total{") for line in own)
    assert all('model_name="onesearch"' in line for line in own if "model_name=" in line)
    assert 'onesearch_processes{process="engine"} 1.0' in lines
