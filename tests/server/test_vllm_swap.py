"""Generations of a registry on a real vLLM: its one set of weights is replaced under load."""

import asyncio
import io
import re
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import httpx
import pytest
import torch

from models.checkpoint import Checkpoint, save_checkpoint
from models.registry import promotion
from models.registry.publication import publish
from models.registry.registry import Registry
from models.transformer import Qwen3
from server.app import create_app
from server.choice import choose_registered
from server.logs import make_logger
from server.metrics import Metrics
from server.rollout_start import start_rollout
from server.schemas import SearchRequest
from server.settings import Settings
from server.start import start_pipeline

pytest.importorskip("vllm", reason="needs vLLM's environment: make test-vllm")

# vLLM and what it imports warn of themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

QUERY = {"query": "red oak desk", "limit": 36, "beam_width": 12, "explain": True}
PATIENCE_S = 60.0
CLIENTS = 3
# Whatever the machine is busy with, no search is late: what is tested is what it finds.
SETTINGS = {
    "engine_threads": 1,
    "engine_dtype": "float32",
    "patience": 0,
    "catalogue_changes": False,
    "timeout_s": 60,
}


class Served(NamedTuple):
    """A gateway on vLLM that follows `registry`. `first` and `second` differ in every weight,
    `foreign` is of another snapshot, `deeper` has a layer more. `truth`: model version → item id →
    SID and score, by the native engine."""

    url: str
    registry: Registry
    first: str
    second: str
    foreign: str
    deeper: str
    truth: dict[str, dict[str, tuple[str, float]]]


@pytest.fixture(scope="module")
def served(
    tiny_pair: Any,
    other_snapshot: Path,
    tmp_path_factory: pytest.TempPathFactory,
    serve: Callable[[Any], AbstractContextManager[str]],
) -> Generator[Served, None, None]:
    folder = tmp_path_factory.mktemp("vllm-swap")
    registry = Registry(folder / "registry")
    pairs = [tiny_pair, *write_others(folder, tiny_pair, other_snapshot)]
    versions = [publish(registry, *pair).record.version for pair in pairs]
    promotion.promote(registry, versions[0])
    truth = dict(asyncio.run(native_answer(*pair)) for pair in pairs[:3])
    assert len(truth) == 3
    settings = Settings(
        **SETTINGS,
        engine="vllm",
        vllm_cache_gb=0.25,
        response_slack_s=10,
        registry=registry.path,
    )
    registered = choose_registered(settings)
    assert registered is not None
    metrics, log = Metrics(), make_logger("error", io.StringIO())
    pipeline, rollout = asyncio.run(start_rollout(settings, registered, metrics, log))
    app = create_app(pipeline, settings, metrics=metrics, log=log, rollout=rollout)
    with serve(app) as url:
        yield Served(url, registry, *versions, truth)


@pytest.fixture
def client(served: Served) -> Generator[httpx.Client, None, None]:
    """On the first generation."""
    with httpx.Client(base_url=served.url, timeout=PATIENCE_S) as client:
        assert ask(client, served.first, "promote").status_code == 200
        yield client


def write_others(folder: Path, pair: Any, other_snapshot: Path) -> list[tuple[Path, Path]]:
    opened = Checkpoint.open(pair.checkpoint)
    generator = torch.Generator().manual_seed(3)
    model = opened.load_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_checkpoint(folder / "second", model, opened.tokenizer, opened.settings, {})
    foreign = replace(opened.settings, codec_id=codec_of(other_snapshot))
    save_checkpoint(folder / "foreign", opened.load_model(), opened.tokenizer, foreign, {})
    config = replace(opened.config, num_hidden_layers=opened.config.num_hidden_layers + 1)
    save_checkpoint(folder / "deeper", Qwen3(config), opened.tokenizer, opened.settings, {})
    return [
        (pair.snapshot, folder / "second"),
        (other_snapshot, folder / "foreign"),
        (pair.snapshot, folder / "deeper"),
    ]


def codec_of(snapshot: Path) -> str:
    from index.snapshot import Snapshot

    return Snapshot.open(snapshot).codec.id


async def native_answer(
    snapshot: Path, checkpoint: Path
) -> tuple[str, dict[str, tuple[str, float]]]:
    """Of a pair: its model version and what it finds."""
    settings, log = Settings(**SETTINGS), make_logger("error", io.StringIO())
    pipeline = await start_pipeline(settings, snapshot, checkpoint, Metrics(), log)
    found = await pipeline.search(SearchRequest(**QUERY), "r", time.monotonic() + PATIENCE_S)
    await pipeline.close()
    assert found.degraded == []
    return found.model_version, {hit.item_id: (hit.sid, hit.score) for hit in found.hits}


def ask(client: httpx.Client, version: str, what: str) -> httpx.Response:
    return client.post(f"/admin/generations/{version}:{what}", json={})


def live(client: httpx.Client) -> str:
    return client.get("/readyz").json()["generation"]["version"]


def swaps(client: httpx.Client) -> float:
    [line] = re.findall(
        r"^onesearch_engine_swaps_total (\S+)$", client.get("/metrics").text, re.MULTILINE
    )
    return float(line)


@contextmanager
def load(served: Served) -> Generator[dict[str, int], None, None]:
    """Searches all the time in the block; how many each generation answered. None fails, and each
    answer is one generation's own."""
    stop, seen = Event(), dict.fromkeys(served.truth, 0)

    def search() -> None:
        with httpx.Client(base_url=served.url, timeout=PATIENCE_S) as client:
            while not stop.is_set():
                answer = client.post("/v1/search", json=QUERY)
                assert answer.status_code == 200, answer.text
                found = answer.json()
                assert found["degraded"] == []
                check_own(found, served.truth[found["model_version"]])
                seen[found["model_version"]] += 1

    with ThreadPoolExecutor(CLIENTS) as threads:
        searches = [threads.submit(search) for _ in range(CLIENTS)]
        try:
            more(seen, searches)
            yield seen
            more(seen, searches)
        finally:
            stop.set()
        for one in searches:
            one.result()


def check_own(found: dict[str, Any], truth: dict[str, tuple[str, float]]) -> None:
    assert {hit["item_id"]: hit["sid"] for hit in found["hits"]} == {
        item: sid for item, (sid, _) in truth.items()
    }
    for hit in found["hits"]:
        assert hit["score"] == pytest.approx(truth[hit["item_id"]][1], abs=1e-3)


def more(seen: dict[str, int], searches: Sequence[Any] = ()) -> None:
    """Wait until some more searches have ended."""
    before, until = sum(seen.values()), time.monotonic() + PATIENCE_S
    while sum(seen.values()) < before + 2 * CLIENTS and not any(one.done() for one in searches):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_promotions_and_a_rollback_under_load_fail_nothing_and_mix_nothing(
    served: Served, client: httpx.Client
):
    with load(served) as seen:
        for version in (served.second, served.foreign, served.first, served.second):
            promoted = ask(client, version, "promote")
            assert promoted.status_code == 200, promoted.text
            assert promoted.json()["live"]["version"] == live(client) == version
            golden = promoted.json()["loaded"][0]["golden"]
            assert golden is None or golden["answered"] == golden["queries"]
            more(seen)
        back = ask(client, served.second, "rollback")
        assert back.json()["live"]["version"] == live(client) == served.first
    assert min(seen.values()) > 0
    assert served.registry.aliases().previous == served.second


def test_what_any_process_promotes_is_followed(served: Served, client: httpx.Client):
    with load(served):
        promotion.promote(served.registry, served.second)
        until = time.monotonic() + PATIENCE_S
        while live(client) != served.second:
            assert time.monotonic() < until
            time.sleep(0.05)
    assert client.get("/readyz").json()["discovery"]["learnt"] == "directory"


def test_another_model_is_refused_with_the_reason(served: Served, client: httpx.Client):
    with load(served) as seen:
        for _ in range(2):
            answer = ask(client, served.deeper, "promote")
            assert [answer.status_code, answer.json()["type"]] == [
                409,
                "/problems/generation-refused",
            ]
            assert "num_hidden_layers" in answer.json()["detail"]
            assert str(served.registry.path) not in answer.text
            assert live(client) == served.registry.aliases().champion == served.first
            more(seen)
    [answered] = [model for model, count in seen.items() if count]
    assert answered == served.registry.record(served.first).pairing.checkpoint


def test_when_the_golden_queries_fail_the_old_weights_are_back(
    served: Served, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    async def nothing(*_: Any) -> tuple[list[Any], tuple[str, ...]]:
        return [], ()

    before = swaps(client)
    with load(served) as seen:
        with monkeypatch.context() as patch:
            patch.setattr("server.pipeline.Pipeline.try_out", nothing)
            answer = ask(client, served.second, "promote")
        assert answer.status_code == 409
        assert "found something, the floor is" in answer.json()["detail"]
        assert live(client) == served.registry.aliases().champion == served.first
        more(seen)
        # The new weights, and the old ones again.
        assert swaps(client) == before + 2
        # It can be promoted where they pass.
        assert ask(client, served.second, "promote").status_code == 200
        more(seen)
    assert seen[served.registry.record(served.first).pairing.checkpoint] > 0
    assert seen[served.registry.record(served.second).pairing.checkpoint] > 0
