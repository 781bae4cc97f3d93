"""Collecting: each search once, late clicks too, from an export and Redis alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.events.export import export, exporting
from server.events.log import BehaviourLog
from server.events.records import Event, Log
from server.redis.connection import RedisConnection
from server.redis.keys import Keys
from server.sidecar.batch import Batch, Bounds, collect, joined
from server.sidecar.rounds import Cursor

ALL = Bounds(1000, 0.0, 3600.0)
SEARCHES = [(f"u{n}", "oak desk", ["a", "b", "c"], ["b"]) for n in range(10)]


def after(batch: Batch | None) -> Cursor:
    return Cursor() if batch is None else batch.until


def test_each_search_once_and_a_late_click_finds_its_own(
    behave: Callable[..., None], on_redis: Callable[..., Any], tmp_path: Path
) -> None:
    behave(SEARCHES)
    first: Batch = on_redis(lambda redis: collect(redis, Keys(), None, Cursor(), ALL))
    assert (first.exposures.num_rows, first.clicks, first.context.num_rows) == (10, 10, 0)
    found = joined(first)
    assert found.rows.num_rows == 10 * 3 + 10
    assert (found.unmatched, found.simulated) == (0.0, True)
    first.write(tmp_path)
    assert joined(Batch.read(tmp_path, first.until)).rows.equals(found.rows)

    async def late(redis: RedisConnection) -> None:
        event = Event("late", "click", "s3", "c", "u3", time.time())
        lost = Event("lost", "click", "never", "c", "u3", time.time())
        await BehaviourLog(redis, Keys(), 3600.0, 50).take([event, lost])

    on_redis(late)
    second: Batch = on_redis(lambda redis: collect(redis, Keys(), None, first.until, ALL))
    assert (second.exposures.num_rows, second.context.num_rows, second.clicks) == (0, 10, 2)
    rows = joined(second)
    assert rows.rows.column("item_id").to_pylist() == ["c"]
    assert rows.unmatched == 0.5
    third: Batch = on_redis(lambda redis: collect(redis, Keys(), None, second.until, ALL))
    assert third.clicks == 0


def test_a_batch_is_bounded_and_the_rest_is_the_next_ones(
    behave: Callable[..., None], on_redis: Callable[..., Any]
) -> None:
    behave(SEARCHES)
    behave(SEARCHES, prefix="t")
    batch, searches, clicks = None, 0, 0
    for _ in range(5):
        since = after(batch)
        batch = on_redis(
            lambda redis, since=since: collect(redis, Keys(), None, since, Bounds(7, 0.0, 3600.0))
        )
        searches += batch.exposures.num_rows
        clicks += batch.clicks
    assert (searches, clicks) == (20, 20)
    assert not batch.full


def test_an_export_is_read_before_redis(
    behave: Callable[..., None], on_redis: Callable[..., Any], tmp_path: Path
) -> None:
    behave(SEARCHES)

    async def exported(redis: RedisConnection) -> None:
        with exporting(tmp_path):
            for log in Log:
                await export(redis, Keys(), tmp_path, log)
        for log in Log:
            await redis.command("DEL", log.key(Keys()))
        await asyncio.sleep(0)

    on_redis(exported)
    behave(SEARCHES, prefix="t")
    batch: Batch = on_redis(lambda redis: collect(redis, Keys(), tmp_path, Cursor(), ALL))
    assert (batch.exposures.num_rows, batch.clicks) == (20, 20)
    assert batch.gaps == ()
    on_redis(lambda redis: redis.command("DEL", Log.EVENTS.key(Keys())))
    again: Batch = on_redis(lambda redis: collect(redis, Keys(), None, batch.until, ALL))
    assert again.gaps == ("events",)
