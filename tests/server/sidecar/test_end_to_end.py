"""Events posted to the gateway lead to a better served model without a hand on it; a poisoned batch
is refused and the champion stays. A real server, a real Redis, everything over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from index.dataset import Dataset
from models.registry.registry import Registry
from server.app import create_app
from server.choice import choose_registered
from server.cli.main import main
from server.events.behaviour import start_behaviour
from server.events.records import Log
from server.experiment import visitors
from server.experiment.visitors import TOP_GRADE, Demand, Visits, visit
from server.logs import make_logger
from server.metrics import Metrics
from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer
from server.redis.keys import Keys
from server.rollout_start import start_rollout
from server.settings import Settings

WAIT_S = 120.0
OWN_SETTINGS = """
min_clicks = 20
settle_s = 0.0
beam_width = 16
[sft]
examples = 2560
batch_examples = 64
learning_rate = 5e-3
[gate]
min_searches = 20
min_valid_rate = 0.0
max_weight_distance = 5.0
max_score_shift = 50.0
max_concentration_gain = 0.5
"""


@pytest.fixture
def url(shop: Any, empty_redis: EmbeddedServer, serve: Any) -> Generator[str, None, None]:
    """A server that follows the registry and takes events."""
    settings = Settings(
        registry=shop.registry,
        redis_url=empty_redis.url,
        events=True,
        catalogue_changes=False,
        engine_threads=1,
        beam_width=16,
        patience=0,
        rollback_window_s=0,
    )
    metrics, log = Metrics(), make_logger("error", io.StringIO())
    registered = choose_registered(settings)
    assert registered is not None

    async def parts() -> Any:
        behaviour = await start_behaviour(settings, metrics, log)
        assert behaviour is not None
        started = await start_rollout(settings, registered, metrics, log, behaviour.contexts)
        return behaviour, *started

    behaviour, pipeline, rollout = asyncio.run(parts())
    app = create_app(
        pipeline, settings, metrics=metrics, log=log, rollout=rollout, behaviour=behaviour
    )
    with serve(app) as url:
        yield url


@pytest.fixture
def sidecar(
    shop: Any, empty_redis: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[int, Any]]:
    """Runs `onesearch sidecar run --once --json`: its status and what it says."""
    monkeypatch.setenv("ONESEARCH_REDIS_URL", empty_redis.url)
    (tmp_path / "sidecar.toml").write_text(OWN_SETTINGS)
    options = {
        "--dataset": shop.dataset,
        "--registry": shop.registry,
        "--state": tmp_path / "state",
        "--settings": tmp_path / "sidecar.toml",
        "--metrics-file": tmp_path / "sidecar.prom",
    }

    def run() -> tuple[int, Any]:
        arguments = [str(part) for option in options.items() for part in option]
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", out)
            status = main(["sidecar", "run", "--once", "--json", *arguments])
        return status, json.loads(out.getvalue())

    return run


def found_share(url: str, shop: Any, demand: Demand) -> float:
    """HR@10 of the server on queries that are never trained on, by judgments that nobody but this
    test and the visitors knows."""
    dataset, found = Dataset.open(shop.dataset), list[bool]()
    with httpx.Client(base_url=url, timeout=30) as client:
        for query in (*dataset.queries("validation"), *dataset.queries("test")):
            grades = demand.grades.get(query, {})
            answer = client.post("/v1/search", json={"query": query, "limit": 10}).json()
            assert answer["degraded"] == []
            found.append(any(grades.get(hit["item_id"]) == TOP_GRADE for hit in answer["hits"]))
    return sum(found) / len(found)


def until(what: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def kept(on_redis: Callable[..., Any], log: Log) -> int:
    def length(redis: RedisConnection) -> Any:
        return redis.command("XLEN", log.key(Keys()))

    return on_redis(length)


def logged(on_redis: Callable[..., Any], request_id: str) -> bool:
    """Whether the exposure of that search has been kept."""

    def entries(redis: RedisConnection) -> Any:
        return redis.command("XRANGE", Log.EXPOSURES.key(Keys()), "-", "+")

    return any(request_id in str(fields) for _, fields in on_redis(entries))


def test_what_users_do_makes_the_served_model_better(
    url: str,
    shop: Any,
    sidecar: Callable[[], tuple[int, Any]],
    on_redis: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # People who see what they want click, so that few visits tell much.
    monkeypatch.setattr(visitors, "CLICK_BIAS", np.array([-7.0, -4.0, -3.0, 2.0]))
    dataset, registry = Dataset.open(shop.dataset), Registry(shop.registry)
    first = registry.aliases().champion
    assert sidecar() == (0, {"outcome": "nothing to do"})
    demand = Demand.of(Dataset.open(shop.judged))
    before = found_share(url, shop, demand)
    asked = kept(on_redis, Log.EXPOSURES)
    # Pages longer than ten: what is wanted further down can be found and clicked.
    visits = Visits(users=120, searches=3.0, limit=50)
    done = asyncio.run(visit(url, demand, visits))
    until(lambda: kept(on_redis, Log.EXPOSURES) >= asked + done.searches)

    status, one = sidecar()
    assert (status, one["outcome"]) == (0, "published"), one["reasons"]
    champion = registry.aliases().champion
    assert champion == one["generation"] != first
    record = registry.record(champion)
    assert record.parents == (first,)
    assert record.metrics["sidecar"]["round"] == 1
    assert record.pairing.simulated
    gain = one["facts"]["gain"]
    assert gain["mean"] > 0.05
    checkpoint = record.pairing.checkpoint

    def served() -> bool:
        answer = httpx.post(f"{url}/v1/search", json={"query": "desk"}, timeout=30).json()
        return answer["model_version"] == checkpoint

    until(served)
    after = found_share(url, shop, demand)
    assert after > before
    text = (tmp_path / "sidecar.prom").read_text()
    assert 'onesearch_sidecar_rounds{outcome="published"} 1.0' in text

    # A robot clicks on all that its search showed, and on what none did.
    shown = httpx.post(f"{url}/v1/search", json={"query": "lamp", "user_id": "simulated-bot"})
    request_id = shown.json()["request_id"]
    hits = [hit["item_id"] for hit in shown.json()["hits"]]
    others = set(dataset.items.column("item_id").to_pylist()[:60]).difference(hits)
    events = [
        {"kind": "click", "request_id": request_id, "item_id": item,
         "user_id": "simulated-bot", "time": time.time(), "simulated": True}
        for item in [*hits, *sorted(others)]
    ]  # fmt: skip
    answer = httpx.post(f"{url}/v1/events", json={"events": events})
    assert answer.json()["accepted"] == len(events)
    until(lambda: logged(on_redis, request_id))
    status, one = sidecar()
    assert (status, one["outcome"]) == (3, "refused")
    assert any(reason.startswith("unmatched events") for reason in one["reasons"])
    assert any(reason.startswith("clicks of one user") for reason in one["reasons"])
    assert registry.aliases().champion == champion
    assert served()
    assert sidecar() == (0, {"outcome": "nothing to do"})
    [note] = [event for event in registry.events() if event["what"] == "sidecar-refused"]
    assert note["who"] == "sidecar"
    assert "unmatched events" in note["why"]
