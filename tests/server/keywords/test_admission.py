"""Searches without keywords are whole as far as the admission is concerned."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.admission import FIRST_LIMIT, MIN_LIMIT, Admission
from server.metrics import Metrics

MOST = 64


@pytest.mark.parametrize(
    ("reason", "learns"), [("keywords_unavailable", True), ("engine_deadline", False)]
)
def test_answers_without_keywords_teach_how_long_a_search_takes(reason: str, learns: bool):
    metrics = Metrics()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["onesearch.facts"] = {"degraded": [reason]}
        await asyncio.sleep(0.001)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ignore(_: Any = None) -> Any: ...

    async def searches() -> None:
        door = Admission(app, MOST, patience=8.0, retry_after_s=1.0, metrics=metrics)
        for _ in range(30):
            await door({"type": "http", "path": "/v1/search"}, ignore, ignore)

    asyncio.run(searches())
    limit = metrics.registry.get_sample_value("onesearch_search_limit")
    assert limit is not None
    assert (limit not in (MIN_LIMIT, FIRST_LIMIT)) is learns
