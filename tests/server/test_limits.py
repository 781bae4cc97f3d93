"""Overload and lateness: shed early, degrade by name, answer in time."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from decoding.errors import DeadlineExceeded, EngineOverloaded
from index.errors import ConfigError

PATIENCE_S = 30.0


def test_more_requests_than_admitted_get_503_at_once(stub_client: Any, stub: Any):
    refused = threading.Semaphore(0)

    async def slow(_: Any) -> None:
        # Two of the four refusals each: they did not wait for these.
        for _turn in range(2):
            assert await asyncio.to_thread(refused.acquire, timeout=PATIENCE_S)

    stub.answer = slow
    client = stub_client(concurrent_requests=2, retry_after_s=3)

    together = threading.Barrier(6)

    def search(_: int) -> httpx.Response:
        with httpx.Client(base_url=client.base_url, timeout=2 * PATIENCE_S) as own:
            together.wait()
            response = own.post("/v1/search", json={"query": "x"})
        if response.status_code == 503:
            refused.release()
        return response

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(search, range(6)))
    assert sorted(response.status_code for response in answers) == [200] * 2 + [503] * 4
    for response in answers:
        if response.status_code == 503:
            assert response.headers["retry-after"] in ("4", "5", "6")
            assert response.json()["type"] == "/problems/overloaded"
    assert client.get("/livez").status_code == 200
    assert "onesearch_shed_total 4.0" in client.get("/metrics").text
    stub.answer = None
    assert client.post("/v1/search", json={"query": "x"}).status_code == 200


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DeadlineExceeded("late"), "engine_deadline"),
        (EngineOverloaded("full", 1.0), "engine_overload"),
        (ConfigError("no"), "engine_error"),
        (RuntimeError("a bug"), "engine_error"),
    ],
)
def test_without_the_engine_retrieval_answers_and_says_so(
    degraded_client: Any, stub_engine: Any, error: Exception, reason: str
):
    stub_engine.error = error
    client = degraded_client()
    response = client.post(
        "/v1/search",
        json={"query": "red oak desk", "limit": 5, "filters": {"color": ["red"]}, "explain": True},
    )
    answer = response.json()
    assert response.status_code == 200
    assert answer["degraded"] == [reason]
    assert answer["hits"][0]["title"] == "red oak desk"
    assert all(hit["color"] == ["red"] for hit in answer["hits"])
    explain = answer["hits"][0]["explain"]
    assert [explain["source"], explain["features"]["sid"]] == ["retrieval", None]
    assert f'onesearch_degraded_total{{reason="{reason}"}} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [(EngineOverloaded("full", 6.2), 503, "7"), (DeadlineExceeded("late"), 504, "1")],
)
def test_a_search_without_fallback_answers_with_the_engines_reason(
    stub_client: Any, stub: Any, error: Exception, status: int, retry_after: str
):
    async def fail(_: Any) -> None:
        raise error

    stub.answer = fail
    response = stub_client().post("/v1/search", json={"query": "x"})
    assert [response.status_code, response.headers["retry-after"]] == [status, retry_after]
    assert response.json()["type"] in ("/problems/overloaded", "/problems/deadline-exceeded")


@pytest.mark.parametrize("timeout_ms", [10, 50, 2000])
def test_a_late_engine_is_not_waited_for(degraded_client: Any, stub_engine: Any, timeout_ms: int):
    stub_engine.delay_s = 60
    client = degraded_client()
    client.get("/livez")
    response = client.post(
        "/v1/search",
        json={"query": "black lamp", "limit": 3, "timeout_ms": timeout_ms},
        timeout=PATIENCE_S,
    )
    if response.status_code == 200:
        assert response.json()["degraded"] == ["engine_deadline"]
        assert len(response.json()["hits"]) == 3
    else:
        # So few milliseconds may be too few even for retrieval; then the answer says that.
        assert [response.status_code, timeout_ms < 2000] == [504, True]


def test_when_nothing_answers_in_time_it_is_504(stub_client: Any, stub: Any):
    async def slow(_: Any) -> None:
        await asyncio.sleep(60)

    stub.answer = slow
    client = stub_client()
    response = client.post("/v1/search", json={"query": "x", "timeout_ms": 50}, timeout=PATIENCE_S)
    assert [response.status_code, response.json()["type"]] == [504, "/problems/deadline-exceeded"]


def test_retrieved_items_can_be_ranked_beside_the_beam(degraded_client: Any):
    client = degraded_client(beam_width=1, retrieval_candidates=10)
    response = client.post(
        "/v1/search", json={"query": "red oak desk", "limit": 10, "explain": True}
    )
    sources = [hit["explain"]["source"] for hit in response.json()["hits"]]
    assert set(sources) == {"beam", "retrieval"}
    assert len({hit["item_id"] for hit in response.json()["hits"]}) == 10
