"""The compose graph as processes: its commands, its environment, its health checks."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.exceptions import AuthenticationError

WAITING_S = 120.0


def total(text: str, name: str, **labels: str) -> float:
    """Sum of the samples of a metric with these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def wait_until(holds: Callable[[], object]) -> None:
    until = time.monotonic() + WAITING_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_search_is_answered_and_its_keywords_are_made(graph: Any, scraped: Any):
    def search() -> dict[str, Any]:
        body = {"query": "red oak desk"}
        answer = httpx.post(f"{graph.gateway.url}/v1/search", json=body, timeout=60)
        assert answer.status_code == 200
        return answer.json()

    answer = search()
    assert answer["hits"] and answer["degraded"] == []

    def made() -> bool:
        # Jobs are entered once the gateway has learnt what the worker makes.
        search()
        return total(scraped(graph.worker.url), "onesearch_keyword_jobs_total") >= 1

    wait_until(made)
    assert total(scraped(graph.worker.url), "onesearch_keyword_jobs_total", outcome="dead") == 0
    text = scraped(graph.gateway.url)
    assert total(text, "onesearch_keyword_misses_total", outcome="queued") >= 1


def test_one_trace_goes_from_the_gateway_through_the_queue_to_the_worker(graph: Any):
    """The first search of a query misses its keywords, so a worker makes them."""
    numbers = count(1)

    def worked_on(spans: list[Any]) -> Any:
        # Until the gateway has learnt what the worker makes, it enters no job.
        number = next(numbers)
        body = {"query": f"glass lamp {number}"}
        headers = {"traceparent": f"00-{number:032x}-b7ad6b7169203331-01"}
        url = f"{graph.gateway.url}/v1/search"
        assert httpx.post(url, json=body, headers=headers, timeout=60).status_code == 200
        ours = {f"{begun:032x}" for begun in range(1, number + 1)}
        return next(
            (one for one in spans if one.name == "keywords.job" and one.trace in ours), None
        )

    job = graph.collector.wait_for(worked_on)
    named = ("POST /v1/search", "keywords.enter", "queue", "generate", "store")

    def whole(_: list[Any]) -> dict[str, Any]:
        spans = {one.name: one for one in graph.collector.trace(job.trace) if one.name != "queue"}
        queue = [one for one in graph.collector.trace(job.trace) if one.parent == job.span]
        spans |= {one.name: one for one in queue}
        return spans if set(named) <= set(spans) else {}

    spans = graph.collector.wait_for(whole)
    request = spans["POST /v1/search"]
    assert [request.service, request.parent] == ["onesearch-gateway", "b7ad6b7169203331"]
    assert [job.service, job.parent] == ["onesearch-worker", request.span]
    assert spans["keywords.enter"].facts["onesearch.outcome"] == "queued"
    assert job.facts["onesearch.outcome"] in ("made", "nothing")
    for name in ("queue", "generate", "store"):
        assert [spans[name].service, spans[name].parent] == [job.service, job.span]
    assert b"glass lamp" not in graph.collector.text


def test_events_are_taken_and_the_admin_door_is_shut(graph: Any):
    gateway = graph.gateway.url
    shown = httpx.post(f"{gateway}/v1/search", json={"query": "black lamp"}, timeout=60).json()
    event = {
        "kind": "click",
        "request_id": shown["request_id"],
        "item_id": shown["hits"][0]["item_id"],
        "time": time.time(),
    }
    taken = httpx.post(f"{gateway}/v1/events", json={"events": [event]}, timeout=60)
    assert [taken.status_code, taken.json()["accepted"]] == [202, 1]
    assert httpx.get(f"{gateway}/admin/generations", timeout=60).status_code == 403


def test_redis_wants_its_password_and_keeps_a_file(graph: Any):
    with (
        Redis(port=graph.redis_port, protocol=2) as stranger,
        pytest.raises(AuthenticationError, match="Authentication required"),
    ):
        stranger.ping()
    password = graph.compose.environment("redis")["REDIS_PASSWORD"]
    with Redis(port=graph.redis_port, password=password, decode_responses=True) as known:
        settings = known.config_get("*")
        assert settings["appendonly"] == "yes"
        assert settings["maxmemory-policy"] == "noeviction"


@pytest.mark.parametrize("service", ["gateway", "worker", "sidecar"])
def test_the_health_check_passes_for_what_lives_and_fails_for_what_does_not(
    graph: Any, service: str
):
    kind, program, flag, script = graph.compose.resolved["services"][service]["healthcheck"]["test"]
    assert [kind, program, flag] == ["CMD", "python", "-c"]
    port = {"gateway": "8080", "worker": "9101", "sidecar": "9102"}[service]
    assert script.count(port) == 1
    own = getattr(graph, service).url.rpartition(":")[2]
    for where, status in ((own, 0), ("1", 1)):
        done = subprocess.run(
            [sys.executable, "-c", script.replace(port, where)], stderr=subprocess.DEVNULL
        )
        assert done.returncode == status


def test_the_password_is_in_no_log(graph: Any):
    password = graph.compose.environment("redis")["REDIS_PASSWORD"]
    for running in (graph.gateway, graph.worker, graph.sidecar):
        assert password not in running.log.read_text()
