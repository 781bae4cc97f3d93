"""Every hit of every answer is checked against the catalogue; what fails is left out and told."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from decoding.native.engine import NativeEngine
from server import ranking
from server.app import create_app
from server.generation import Generation
from server.legality import illegalities
from server.logs import make_logger
from server.metrics import Metrics
from server.settings import Settings
from server.start import start_pipeline


@pytest.fixture
def watched(
    tiny_pair: Any, start_server: Callable[[Any], httpx.Client], log_lines: io.StringIO
) -> httpx.Client:
    settings = Settings(engine_threads=1, beam_width=64, catalogue_changes=False)
    metrics, log = Metrics(), make_logger("info", log_lines)
    pipeline = asyncio.run(start_pipeline(settings, *tiny_pair, metrics, log))
    return start_server(create_app(pipeline, settings, metrics=metrics, log=log))


def illegal(client: httpx.Client) -> float:
    """What is counted."""
    [line] = [
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("onesearch_illegal_hits_total ")
    ]
    return float(line.split()[1])


def test_all_is_well(watched: httpx.Client):
    for query in ("desk", "red lamp", "nothing known"):
        assert watched.post("/v1/search", json={"query": query, "limit": 30}).json()["hits"]
    assert illegal(watched) == 0


@pytest.mark.parametrize(
    "change", [{"sid": "<a_0><b_0><c_0>"}, {"item_id": "gone"}, {"score": float("nan")}]
)
def test_a_hit_that_is_none_is_left_out_counted_and_told(
    watched: httpx.Client,
    log_lines: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
):
    whole = watched.post("/v1/search", json={"query": "desk"}).json()
    hits_of = ranking.hits_of

    def spoiled(*arguments: Any, **named: Any) -> Any:
        first, *others = hits_of(*arguments, **named)
        assert change.get("sid") != first.sid
        return [first.model_copy(update=change), *others]

    monkeypatch.setattr(ranking, "hits_of", spoiled)
    answer = watched.post("/v1/search", json={"query": "desk"}).json()
    assert [hit["item_id"] for hit in answer["hits"]] == [
        hit["item_id"] for hit in whole["hits"][1:]
    ]
    assert [answer["complete"], illegal(watched)] == [False, 1]
    told = [json.loads(line) for line in log_lines.getvalue().splitlines()]
    [line] = [line for line in told if line["event"] == "illegal hits"]
    assert line["request_id"] == answer["request_id"] and line["level"] == "error"
    assert "desk" not in log_lines.getvalue()


def test_what_the_engine_decodes_has_to_be_the_items_own(
    watched: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    """A leaf that is not that of the codes that were scored: as if the engine had another trie."""
    search = NativeEngine.search

    async def shifted(*arguments: Any, **named: Any) -> Any:
        found = await search(*arguments, **named)
        found[0].codes[:] = np.roll(found[0].codes, 1, axis=0)
        return found

    monkeypatch.setattr(NativeEngine, "search", shifted)
    assert watched.post("/v1/search", json={"query": "desk"}).status_code == 200
    assert illegal(watched) > 0


def test_nothing_is_wrong_with_nothing(generation: Generation):
    assert illegalities(generation.view, []) == []
