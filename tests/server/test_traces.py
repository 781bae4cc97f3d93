"""Traces, sent to a real collector over HTTP."""

from __future__ import annotations

import asyncio
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any

import httpx
import pytest

from index.errors import ConfigError
from server.app import create_app
from server.logs import make_logger
from server.metrics import Metrics
from server.settings import Settings
from server.start import start_pipeline
from server.traces import EXPORT_TIMEOUT_S, Traces, start_traces

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, SPAN = PARENT.split("-")[1:3]
ENDING_S = 30.0
NOT_TRACED = PARENT.removesuffix("01") + "00"


@pytest.fixture(autouse=True)
def sent_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans wait for no others."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


@pytest.fixture
def collector(collecting: Any) -> Generator[Any, None, None]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def traced(
    tiny_pair: Any, collector: Any, start_server: Callable[[Any], httpx.Client]
) -> Callable[..., httpx.Client]:
    """`traced(log, **settings)` → a gateway with the real engine that sends to the collector."""

    def start(log_lines: io.StringIO | None = None, **changes: Any) -> httpx.Client:
        given = {"catalogue_changes": False, "beam_width": 16, "otlp_endpoint": collector.url}
        settings = Settings(engine_threads=1, **given | changes)
        metrics = Metrics(start_traces(settings, "gateway"))
        log = make_logger("info", log_lines or io.StringIO())
        pipeline = asyncio.run(start_pipeline(settings, *tiny_pair, metrics, log))
        return start_server(create_app(pipeline, settings, metrics=metrics, log=log))

    return start


def request_of(spans: list[Any]) -> Any:
    """The span of the one search."""
    return next((span for span in spans if span.name.endswith("/v1/search")), None)


def test_a_search_is_one_trace_of_its_stages(traced: Any, collector: Any):
    body = {"query": "private matter", "history": ["i1"], "user_id": "somebody"}
    answer = traced().post("/v1/search", json=body, headers={"traceparent": PARENT})
    assert answer.status_code == 200
    request = collector.wait_for(request_of)
    spans = {span.name: span for span in collector.trace(TRACE)}
    assert [request.trace, request.parent, request.name] == [TRACE, SPAN, "POST /v1/search"]
    tree = {
        "context": "POST /v1/search",
        "prepare": "POST /v1/search",
        "embedding": "prepare",
        "engine": "POST /v1/search",
        "queue": "engine",
        "beam": "engine",
        "rank": "POST /v1/search",
        "candidates": "rank",
        "rescoring": "rank",
        "hits": "rank",
    }
    assert {name: spans[name].parent for name in tree} == {
        name: spans[parent].span for name, parent in tree.items()
    }
    assert set(spans) == {*tree, "POST /v1/search"}
    for name, parent in tree.items():
        # Times come from several clocks, so a millisecond is nothing.
        assert spans[parent].began_ns - 1e6 <= spans[name].began_ns <= spans[name].ended_ns
        assert spans[name].ended_ns <= spans[parent].ended_ns + 1e6
    assert spans["queue"].ended_ns <= spans["beam"].began_ns + 1e6
    assert {span.service for span in spans.values()} == {"onesearch-gateway"}
    assert request.facts["http.response.status_code"] == 200
    assert request.facts["onesearch.request_id"] == answer.headers["x-request-id"]
    assert request.facts["onesearch.hits"] == len(answer.json()["hits"])


def test_no_text_and_no_user_is_in_a_trace(traced: Any, collector: Any):
    client = traced()
    client.post("/v1/search", json={"query": "private matter", "user_id": "somebody"})
    client.get("/v1/search", params={"query": "private link"})
    client.get("/private/path")
    collector.wait_for(lambda spans: len([one for one in spans if not one.parent]) >= 3)
    assert b"private" not in collector.text
    assert b"somebody" not in collector.text
    assert b"GET other" in collector.text


def test_query_texts_are_traced_where_a_setting_says_so(traced: Any, collector: Any):
    traced(trace_queries=True).post("/v1/search", json={"query": "public matter"})
    assert collector.wait_for(request_of).facts["onesearch.query"] == "public matter"


def test_a_log_line_names_its_trace(traced: Any, collector: Any):
    log_lines = io.StringIO()
    traced(log_lines).post("/v1/search", json={"query": "x"}, headers={"traceparent": PARENT})
    collector.wait_for(request_of)
    assert f'"trace_id":"{TRACE}"' in log_lines.getvalue()


@pytest.mark.parametrize("given", ["", "nonsense", "00-0-0-01", PARENT + "x" * 999])
def test_a_wrong_traceparent_begins_a_trace_of_ours(traced: Any, collector: Any, given: str):
    traced().post("/v1/search", json={"query": "x"}, headers={"traceparent": given})
    request = collector.wait_for(request_of)
    assert request.trace != TRACE and request.parent == ""


@pytest.mark.parametrize(("given", "share"), [(NOT_TRACED, 1.0), (PARENT, 0.0), ("", 0.0)])
def test_a_client_can_ask_for_less_and_not_for_more(
    traced: Any, collector: Any, given: str, share: float
):
    """Asked after it, a traced request would arrive after it."""
    client = traced(trace_share=share)
    client.post("/v1/search", json={"query": "x"}, headers={"traceparent": given})
    other = Traces("other", _exporter(collector.url))
    other.record("last", 0.0)
    other.close()
    assert collector.wait_for(lambda spans: [span.name for span in spans]) == ["last"]


def test_a_failed_search_is_told_as_such(traced: Any, collector: Any, monkeypatch: Any):
    client = traced()
    from server.pipeline import Pipeline

    def broken(*_: Any) -> None:
        raise RuntimeError("private matter")

    monkeypatch.setattr(Pipeline, "_rank", broken)
    assert client.post("/v1/search", json={"query": "x"}).status_code == 500
    request = collector.wait_for(request_of)
    assert request.error and request.facts["http.response.status_code"] == 500
    assert b"private" not in collector.text


def test_probes_and_scrapes_are_not_traced(traced: Any, collector: Any):
    client = traced()
    for path in ("/livez", "/readyz", "/metrics", "/v1/models"):
        client.get(path)
    collector.wait_for(lambda spans: spans)
    assert {span.name for span in collector.seen} == {"GET /v1/models"}


def test_off_nothing_that_traces_is_imported():
    """The client of Redis looks for OpenTelemetry's metrics by itself."""
    program = (
        "import sys; import server.keywords.worker, server.keywords.reader, server.metrics; "
        "import server.traced_requests, server.stopwatch, server.cli.serve, server.cli.worker; "
        "from server.traces import start_traces; from server.settings import Settings; "
        "assert start_traces(Settings(), 'gateway') is None; "
        "found = ('opentelemetry.sdk.trace', 'opentelemetry.exporter', 'requests'); "
        "print([name for name in sys.modules if name.startswith(found)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_wrong_address_is_told_at_the_start():
    with pytest.raises(ConfigError, match="otlp_endpoint must begin with http"):
        start_traces(Settings(otlp_endpoint="collector:4318"), "worker")


def _exporter(url: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(f"{url}/v1/traces", timeout=EXPORT_TIMEOUT_S)


def test_without_the_collector_requests_are_answered_and_the_end_is_not_held_up(
    traced: Any, collecting: Any
):
    with collecting() as gone:
        url = gone.url
    client = traced(otlp_endpoint=url)
    for number in range(5):
        assert client.post("/v1/search", json={"query": f"desk {number}"}).status_code == 200
    traces = Traces("other", _exporter(url))
    traces.record("lost", 0.0)
    ended = threading.Thread(target=traces.close, daemon=True)
    ended.start()
    ended.join(ENDING_S)
    assert not ended.is_alive()


def test_a_silent_collector_does_not_hold_up_the_end():
    """One that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        traces = Traces("other", _exporter(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        traces.record("lost", 0.0)
        ended = threading.Thread(target=traces.close, daemon=True)
        ended.start()
        ended.join(ENDING_S)
        assert not ended.is_alive()
