"""POST /v1/events and what searches leave behind, over HTTP, with a real Redis and a Valkey."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from index.errors import ConfigError
from server.app import create_app
from server.events.behaviour import Behaviour, start_behaviour
from server.events.log import pages_after
from server.events.records import Log
from server.logs import make_logger
from server.metrics import Metrics
from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer, find_binary
from server.redis.keys import Keys
from server.settings import Settings
from server.start import start_pipeline

WAIT_S = 60.0
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
Start = Callable[..., httpx.Client]


@pytest.fixture
def empty_redis(redis_server: EmbeddedServer) -> EmbeddedServer:
    ask(redis_server.url, lambda redis: redis.command("FLUSHALL"))
    return redis_server


@pytest.fixture
def start(
    stub: Any,
    empty_redis: EmbeddedServer,
    start_server: Callable[[Any], httpx.Client],
    log_lines: io.StringIO,
) -> Start:
    """`start(**settings)` → a client of a gateway over the stub, with events."""

    def go(**changes: Any) -> httpx.Client:
        chosen = Settings(**{"events": True, "redis_url": empty_redis.url, **changes})
        metrics, log = Metrics(), make_logger("info", log_lines)
        behaviour = asyncio.run(start_behaviour(chosen, metrics, log))
        app = create_app(stub, chosen, metrics=metrics, log=log, behaviour=behaviour)
        return start_server(app)

    return go


@pytest.fixture
def searching(
    tiny_pair: Any, empty_redis: EmbeddedServer, start_server: Callable[[Any], httpx.Client]
) -> Start:
    """`searching(**settings)` → the same over the real engine and the tiny generation."""

    def go(**changes: Any) -> httpx.Client:
        chosen = Settings(
            engine_threads=1,
            beam_width=16,
            catalogue_changes=False,
            patience=0,
            **{"events": True, "redis_url": empty_redis.url, "context_budget_ms": 1000, **changes},
        )
        metrics, log = Metrics(), make_logger("error", io.StringIO())

        async def parts() -> Any:
            behaviour = await start_behaviour(chosen, metrics, log)
            assert behaviour is not None
            pipeline = await start_pipeline(chosen, *tiny_pair, metrics, log, behaviour.contexts)
            return behaviour, pipeline

        behaviour, pipeline = asyncio.run(parts())
        app = create_app(pipeline, chosen, metrics=metrics, log=log, behaviour=behaviour)
        return start_server(app)

    return go


def ask(url: str, work: Callable[[RedisConnection], Any]) -> Any:
    async def go() -> Any:
        redis = RedisConnection(url, 5.0)
        try:
            return await work(redis)
        finally:
            await redis.close()

    return asyncio.run(go())


def kept(server: EmbeddedServer, log: Log) -> list[dict[str, Any]]:
    async def work(redis: RedisConnection) -> list[dict[str, Any]]:
        pages = [page async for page in pages_after(redis, Keys(), log)]
        return [row for page in pages for row in page.rows.to_pylist()]

    return ask(server.url, work)


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def click(item: str = "i1", user: str | None = "u1", **more: Any) -> dict[str, Any]:
    event = {"kind": "click", "request_id": "r1", "item_id": item, "time": time.time()}
    return event | ({} if user is None else {"user_id": user}) | more


def post(client: httpx.Client, *events: Any) -> httpx.Response:
    return client.post("/v1/events", json={"events": list(events)})


def test_events_are_kept_when_they_are_acknowledged(start: Start, empty_redis: EmbeddedServer):
    client = start()
    answer = post(client, click(event_id="a"), click(kind="view"), click("i2", event_id="b"))
    assert answer.status_code == 202
    told = answer.json()
    assert [told["accepted"], told["duplicates"], told["took_ms"] > 0] == [2, 0, True]
    assert [(bad["index"], bad["reason"][:5]) for bad in told["rejected"]] == [(1, "kind:")]
    assert [row["event_id"] for row in kept(empty_redis, Log.EVENTS)] == ["a", "b"]
    again = post(client, click(event_id="b"), click("i3", event_id="c")).json()
    assert [again["accepted"], again["duplicates"]] == [1, 1]
    text = client.get("/metrics").text
    assert 'onesearch_events_total{outcome="accepted"} 3.0' in text
    assert 'onesearch_events_total{outcome="duplicate"} 1.0' in text
    assert 'onesearch_events_total{outcome="rejected"} 1.0' in text


def test_what_is_wrong_is_named(start: Start):
    client = start(event_body_bytes=4096)
    nothing = post(client, click(time=-1), click(x=1))
    assert [nothing.status_code, nothing.json()["type"]] == [422, "/problems/no-valid-event"]
    assert [wrong["place"] for wrong in nothing.json()["errors"]] == [
        "body.events.0",
        "body.events.1",
    ]
    form = client.post("/v1/events", content=b"{}", headers={"content-type": "text/plain"})
    assert form.status_code == 415
    assert client.post("/v1/events", json={"events": [], "x": 1}).status_code == 422
    assert client.post("/v1/events", json={"events": [click("i" * 200)] * 30}).status_code == 413
    assert client.get("/v1/events").status_code == 405


def test_who_may_send_events(start: Start):
    local = start(events=None)
    assert post(local, click()).status_code == 202
    for headers in ({"host": "shop.example"}, {"x-forwarded-for": "10.0.0.1"}):
        refused = local.post("/v1/events", json={"events": [click()]}, headers=headers)
        assert [refused.status_code, refused.json()["type"]] == [403, "/problems/events-refused"]
    assert post(start(host="0.0.0.0", events=None, exposures=True), click()).status_code == 403
    assert post(start(events=False), click()).status_code == 403
    assert post(start(host="0.0.0.0", events=True), click()).status_code == 202


def test_without_redis_nothing_is_taken_and_searches_go_on(start: Start, log_lines: io.StringIO):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for url in ("unix:///none.sock", f"redis://127.0.0.1:{port}"):
            client = start(redis_url=url, redis_timeout_s=0.1)
            refused = post(client, click())
            assert refused.status_code == 503
            assert refused.json()["type"] == "/problems/events-unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            assert client.post("/v1/search", json={"query": "desk"}).status_code == 200
            text = client.get("/metrics").text
            assert 'onesearch_events_total{outcome="failed"} 1.0' in text
            assert 'onesearch_exposures_total{outcome="dropped"} 0.0' in text
    assert "events not taken" in log_lines.getvalue()


def test_each_answer_leaves_an_exposure(searching: Start, empty_redis: EmbeddedServer):
    client = searching()
    answers = [
        client.post("/v1/search", json={"query": "Red  Desk", "user_id": "u1", "limit": 3}),
        client.get("/v1/search", params={"query": "lamp", "user_id": "simulated-1"}),
        client.post("/v1/search", json={"query": "lamp", "history": ["i1", "i2"]}),
    ]
    assert client.post("/v1/search", json={"query": "lamp", "limit": 0}).status_code == 422
    wait_for(lambda: len(kept(empty_redis, Log.EXPOSURES)) == 3)
    rows = kept(empty_redis, Log.EXPOSURES)
    for row, answer in zip(rows, (answer.json() for answer in answers), strict=True):
        assert row["request_id"] == answer["request_id"]
        assert row["items"] == [hit["item_id"] for hit in answer["hits"]]
        assert row["model_version"] == answer["model_version"]
        assert [row["experiment"], row["arm"], row["simulated"]] == ["", "champion", True]
    assert [row["unit"] for row in rows[:2]] == ["user:u1", "user:simulated-1"]
    assert rows[2]["unit"] == f"request:{answers[2].json()['request_id']}"
    assert [row["query"] for row in rows] == ["red desk", "lamp", "lamp"]
    assert [row["history_items"] for row in rows] == [0, 0, 2]
    assert 'onesearch_exposures_total{outcome="logged"} 3.0' in client.get("/metrics").text


def test_exposures_can_do_without_queries_and_be_off(start: Start, empty_redis: EmbeddedServer):
    quiet = start(exposure_queries=False)
    quiet.post("/v1/search", json={"query": "red desk"})
    wait_for(lambda: len(kept(empty_redis, Log.EXPOSURES)) == 1)
    assert kept(empty_redis, Log.EXPOSURES)[0]["query"] == ""
    off = start(exposures=False)
    off.post("/v1/search", json={"query": "red desk"})
    quiet.post("/v1/search", json={"query": "red desk"})
    wait_for(lambda: len(kept(empty_redis, Log.EXPOSURES)) == 2)
    assert 'onesearch_exposures_total{outcome="logged"} 0.0' in off.get("/metrics").text


def test_exposures_that_nobody_takes_are_dropped_and_counted(start: Start):
    client = start(redis_url="unix:///none.sock", exposure_queue=5)
    for _ in range(8):
        assert client.post("/v1/search", json={"query": "red desk"}).status_code == 200
    text = client.get("/metrics").text
    assert 'onesearch_exposures_total{outcome="dropped"} 3.0' in text
    assert "onesearch_exposures_waiting 5.0" in text


def test_what_users_click_is_known_in_their_next_search(searching: Start):
    client = searching()

    def known(**search: Any) -> int:
        answer = client.post("/v1/search", json={"query": "desk", "user_id": "u1", **search})
        assert answer.status_code == 200
        return answer.json()["history_items"]

    assert known() == 0
    order = {"kind": "order", "time": time.time() + 1}
    assert post(client, click("i3"), click("i3", **order), click("i4")).status_code == 202
    assert known() == 2
    assert known(history=["i9"]) == 1
    assert known() == 2
    assert known(user_id="u2") == 0
    assert known(user_id="u2", history=["i1", "i2", "i3"]) == 3
    # Nothing is known of u2 but what a request said.
    assert known(user_id="u2") == 3
    text = client.get("/metrics").text
    assert 'onesearch_context_reads_total{result="stored"} 2.0' in text
    assert 'onesearch_context_reads_total{result="unknown"} 3.0' in text


def test_a_silent_redis_costs_a_search_its_budget_and_nothing_more(searching: Start):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        client = searching(redis_url=url, redis_timeout_s=0.1, context_budget_ms=1)
        for _ in range(10):
            answer = client.post("/v1/search", json={"query": "desk", "user_id": "u1"})
            assert [answer.status_code, answer.json()["degraded"]] == [200, []]
        text = client.get("/metrics").text
        assert 'onesearch_context_reads_total{result="stored"} 0.0' in text
        assert 'onesearch_context_reads_total{result="late"} 0.0' not in text


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_generated_events(start: Start, mode: GenerationMode):
    """Events made from the description, legal and not: never a 5xx, always as described."""
    client = start()
    described = schemathesis.openapi.from_url(str(client.base_url.join("/openapi.json")))
    operation = described["/v1/events"]["POST"]

    @settings(
        max_examples=60,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        case.validate_response(case.call(), checks=CHECKS)

    run()


@pytest.fixture
def own_server(tmp_path: Path) -> Generator[EmbeddedServer, None, None]:
    server = EmbeddedServer(tmp_path / "redis", find_binary())
    server.start()
    yield server
    server.stop()


def test_a_killed_server_has_every_event_that_was_acknowledged(
    own_server: EmbeddedServer, start: Start
):
    """kill −9 of the embedded server amid clients that send: it is started again by its owner, and
    what was answered with 202 is there, each event once, also those that were sent again."""
    client = start(redis_url=own_server.url, redis_timeout_s=2)
    acknowledged: list[str] = []
    failures = 0
    for number in range(300):
        if number in (60, 180):
            pid = own_server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        ids = [f"{number}-{place}" for place in range(5)]
        until = time.monotonic() + WAIT_S
        while (answer := post(client, *(click(event_id=id) for id in ids))).status_code != 202:
            assert answer.status_code == 503
            assert time.monotonic() < until
            failures += 1
            time.sleep(0.05)
        acknowledged += ids
    assert failures
    found = [row["event_id"] for row in kept(own_server, Log.EVENTS)]
    assert sorted(found) == sorted(acknowledged)
    assert len(set(found)) == len(found)


def test_exposures_of_the_last_searches_are_written_at_the_end(
    stub: Any, empty_redis: EmbeddedServer, serve: Any
):
    chosen = Settings(events=True, redis_url=empty_redis.url)
    metrics, log = Metrics(), make_logger("error", io.StringIO())
    behaviour = Behaviour(RedisConnection(empty_redis.url, 5.0), chosen, metrics, log)
    with serve(create_app(stub, chosen, metrics=metrics, log=log, behaviour=behaviour)) as url:
        for _ in range(20):
            httpx.post(f"{url}/v1/search", json={"query": "desk"}, timeout=WAIT_S)
    assert len(kept(empty_redis, Log.EXPOSURES)) == 20


def test_where_there_is_no_server_program_only_who_asks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def none() -> None:
        raise ConfigError("no server program")

    monkeypatch.setattr("server.redis.embedded.find_binary", none)
    lines = io.StringIO()

    def started(**changes: Any) -> Behaviour | None:
        chosen = Settings(redis_directory=tmp_path, **changes)
        return asyncio.run(start_behaviour(chosen, Metrics(), make_logger("info", lines)))

    assert started(events=None) is None
    assert "events are not taken" in lines.getvalue()
    assert started(events=False) is None
    with pytest.raises(ConfigError, match="no server program"):
        started(events=True)
