"""Two generations do not fit into memory: the weights of one give way to those of the other."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import server.memory
from decoding.weights import DecoderWeights
from server.golden import SAMPLED_TITLES
from server.memory import NotEnoughMemory
from server.pipeline import Pipeline
from server.rollout_loading import Loading
from tests.server.followed import until

QUERY = {"query": "red oak desk", "limit": 36}
ONE = 1 << 40


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Room for one set of weights: none is left while another is alive."""
    alive: list[weakref.ref[Any]] = []
    load = DecoderWeights.from_directory

    def loaded(*given: Any, **how: Any) -> Any:
        weights = load(*given, **how)
        alive.append(weakref.ref(weights.level_output[0]))
        return weights

    def available(_: str = "cpu") -> int:
        return 0 if any(one() is not None for one in alive) else ONE

    monkeypatch.setattr(DecoderWeights, "from_directory", loaded)
    monkeypatch.setattr(server.memory, "available_bytes", available)
    return alive


class Searching:
    """Searches all the time; what was answered."""

    def __init__(self, client: httpx.Client) -> None:
        self._url = client.base_url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._search)
        self.answers: list[tuple[int, list[str], str]] = []

    def __enter__(self) -> "Searching":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _search(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stop.is_set():
                answer = client.post("/v1/search", json=QUERY)
                found = answer.json()
                self.answers.append((answer.status_code, found["degraded"], found["model_version"]))
                assert len(found["hits"]) == 36


def promote(client: httpx.Client, version: str) -> httpx.Response:
    return client.post(f"/admin/generations/{version}:promote", json={})


def served(client: httpx.Client) -> str:
    return client.get("/readyz").json()["generation"]["version"]


def test_weights_are_replaced_in_place_and_retrieval_answers_meanwhile(
    published: Any,
    follow: Callable[..., httpx.Client],
    memory: list[weakref.ref[Any]],
    monkeypatch: pytest.MonkeyPatch,
):
    client = follow(when_memory_is_short="replace")
    golden = Loading.golden

    async def slowly(loading: Loading, generation: Any) -> Any:
        # Long enough for a search to come meanwhile.
        await asyncio.to_thread(
            until, lambda: any(degraded for _, degraded, _ in searching.answers)
        )
        return await golden(loading, generation)

    monkeypatch.setattr(Loading, "golden", slowly)
    assert client.post("/v1/search", json=QUERY).json()["degraded"] == []
    with Searching(client) as searching:
        assert promote(client, published.second).status_code == 200
        assert served(client) == published.second
        done = len(searching.answers)
        while len(searching.answers) < done + 5:
            assert searching._thread.is_alive()
    assert {status for status, _, _ in searching.answers} == {200}
    reasons = {reason for _, degraded, _ in searching.answers for reason in degraded}
    assert reasons == {"engine_replaced"}
    models = list(dict.fromkeys(model for _, _, model in searching.answers))
    registry = published.registry
    assert models == [
        registry.record(version).pairing.checkpoint
        for version in (published.first, published.second)
    ]
    assert searching.answers[-1][1] == []
    # Another snapshot, and the rollback to what is not in memory any more.
    assert promote(client, published.foreign).status_code == 200
    back = client.post("/admin/generations/champion:rollback", json={})
    assert back.json()["live"]["version"] == published.second
    assert [one["version"] for one in back.json()["loaded"]] == [published.second]
    # What gives nobody an answer is refused all the same.
    assert client.post(f"/admin/generations/{published.first}:load", json={}).status_code == 409
    assert "onesearch_generation_promotions_total 3.0" in client.get("/metrics").text


def test_what_fails_leaves_the_old_weights_loaded_again(
    published: Any,
    follow: Callable[..., httpx.Client],
    memory: list[weakref.ref[Any]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("server.rollout_retry.RETRY_S", 0.1)
    client = follow(when_memory_is_short="replace")
    whole = client.post("/v1/search", json=QUERY).json()

    async def nothing(*_: Any, **__: Any) -> tuple[list[Any], tuple[str, ...]]:
        return [], ()

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "try_out", nothing)
        refused = promote(client, published.second)
    assert refused.status_code == 409
    assert f"0 of {SAMPLED_TITLES} found" in refused.json()["detail"]
    assert published.registry.aliases().champion == served(client) == published.first
    again = client.post("/v1/search", json=QUERY).json()
    assert [again["hits"], again["degraded"]] == [whole["hits"], []]
    assert len(memory) == 3

    def broken(*_: Any) -> Any:
        raise NotEnoughMemory("there is no room at all")

    with monkeypatch.context() as patch:
        patch.setattr(Loading, "open", broken)
        patch.setattr(Loading, "with_weights_again", broken)
        assert "no room at all" in promote(client, published.second).json()["detail"]
        found = client.post("/v1/search", json=QUERY).json()
        assert [found["degraded"], len(found["hits"])] == [["engine_replaced"], 36]
        told = client.get("/readyz").json()["generation"]
        assert told["version"] == published.first
        assert told["problem"] != ""
    while (found := client.post("/v1/search", json=QUERY).json())["degraded"]:
        assert found["degraded"] == ["engine_replaced"]
    assert found["hits"] == whole["hits"]
    assert client.get("/readyz").json()["generation"]["problem"] == ""


def test_unless_it_is_set_memory_that_is_short_is_a_refusal(
    published: Any, follow: Callable[..., httpx.Client], memory: list[weakref.ref[Any]]
):
    client = follow()
    assert "are available" in promote(client, published.second).json()["detail"]
    assert client.post("/v1/search", json=QUERY).json()["degraded"] == []
