"""What takes memory: entries in Redis, and a serving gateway by the size of its catalogue.

Tables:

redis      bytes of one entry of each kind: `used_memory` of an embedded server after the program's
           own code has written many of them, divided by their number
gateway    memory of `onesearch serve` and its children after a first start, in which kernels are
           compiled, and searches of all beam widths as fast as they are answered: products of
           every shape have been seen then (proportional set size: what it has for itself and its
           share of mapped files). On a small simulated shop; a pair that is given takes its place

`loadtest/planning_table.py` makes tables for `onesearch plan` of them, of two catalogues: what an
item takes is the difference.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from index.artifact import read
from loadtest.bench.load import post, press
from loadtest.bench.overload import demo_pair, in_loop, queries_of, running
from loadtest.bench.report import Row, row
from server.events.log import BehaviourLog
from server.events.records import Event
from server.experiment.records import CLICK, IMPRESSION, Exposure
from server.keywords.jobs import Priority
from server.keywords.keywords import Analysis, KeywordRequest, Keywords, Source, keywords_to_json
from server.keywords.queue import Done, KeywordQueue
from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer
from server.redis.keys import GENERIC_TTL_S, Keys

TIMEOUT_S = 5.0
RETENTION_S = 30 * 24 * 3600.0
RECENT_ITEMS = 50
SHOWN = 10
TERMS = ("oak", "office", "writing desk", "solid wood")
BATCH = 500
"""Entries of a batch; a stream keeps about a hundred entries in one node."""
CLIENTS, SECONDS = 16, 30.0
BEAM_WIDTHS = (10, 32, 64, 128)


def rows(
    quick: bool = False, *, snapshot: Path | None = None, checkpoint: Path | None = None
) -> list[Row]:
    """Both tables."""
    return redis(quick) + _gateway(snapshot, checkpoint)


def redis(quick: bool = False) -> list[Row]:
    """Bytes of entries."""
    count = 500 if quick else 20_000
    parts = {"keywords": _keywords, "behaviour": _behaviour}
    return [found for part in parts.values() for found in in_loop(_in_redis(part, count))]


def gateway(quick: bool = False) -> list[Row]:
    """Megabytes of a gateway."""
    return _gateway(None, None)


TABLES = {"redis": redis, "gateway": gateway}
_Part = Callable[[RedisConnection, int], Awaitable[list[Row]]]


async def _in_redis(part: _Part, count: int) -> list[Row]:
    async with _redis() as connection:
        return await part(connection, count)


@asynccontextmanager
async def _redis() -> AsyncGenerator[RedisConnection, None]:
    with tempfile.TemporaryDirectory(prefix="onesearch-footprint-") as folder:
        server = EmbeddedServer(Path(folder) / "redis")
        await asyncio.to_thread(server.start)
        connection = RedisConnection(server.url, TIMEOUT_S)
        try:
            # The connection's own buffers are there before anything is measured.
            await connection.command("PING")
            yield connection
        finally:
            await connection.close()
            await asyncio.to_thread(server.stop)


async def _used(redis: RedisConnection) -> int:
    return int((await redis.command("INFO", "memory"))["used_memory"])


async def _keywords(redis: RedisConnection, count: int) -> list[Row]:
    keys = Keys()
    queue = KeywordQueue(redis, keys, limit=2 * count)
    before = await _used(redis)
    requests = [KeywordRequest(f"solid oak writing desk {number}") for number in range(count)]
    await queue.enter(requests, Priority.LIVE, None)
    waiting = await _used(redis) - before
    source = Source("statistical")
    while taken := await queue.take(BATCH):
        done: list[Done] = []
        for held in taken.jobs:
            query = held.job.request.normalised
            made = Keywords(query, TERMS, (), Analysis(topics=("desk",)), source, time.time())
            key = keys.keywords(source.version, query, None)
            done.append(Done(held, key, keywords_to_json(made), GENERIC_TTL_S))
        await queue.finish(done)
    kept = await _memory_of(redis, keys.made)
    stored = await _used(redis) - before - kept
    made_entries = await redis.command("XLEN", keys.made)
    return [
        _bytes("a keyword job that waits", waiting / count, count),
        _bytes("keywords of a query", stored / count, count),
        _bytes("an answer kept for training", kept / made_entries, made_entries),
    ]


async def _behaviour(redis: RedisConnection, count: int) -> list[Row]:
    keys = Keys()
    log = BehaviourLog(redis, keys, RETENTION_S, RECENT_ITEMS)
    before, now = await _used(redis), time.time()
    for start in range(0, count, BATCH):
        await log.take([_event(number, None, now) for number in range(start, start + BATCH)])
    events = await _memory_of(redis, keys.events)
    seen = await _used(redis) - before - events
    users = max(1, count // RECENT_ITEMS)
    before = await _used(redis)
    for user in range(users):
        first = count + user * RECENT_ITEMS
        numbers = range(first, first + RECENT_ITEMS)
        await log.take([_event(number, f"user-{user:06d}", now) for number in numbers])
    recent = await _used(redis) - before
    clicks = await _memory_of(redis, keys.events) - events
    # Ids of events are as large whoever sent them.
    recent -= clicks + round(seen / count * users * RECENT_ITEMS)
    for start in range(0, count, BATCH):
        batch = [_exposure(number, now) for number in range(start, start + BATCH)]
        await log.write(batch, f"batch-{start}")
    shown = await _memory_of(redis, keys.exposures)
    return [
        _bytes("an event", (events + clicks) / (count + users * RECENT_ITEMS), count),
        _bytes("an event's id, known for a day", seen / count, count),
        _bytes(f"a user's {RECENT_ITEMS} recent items", recent / users, users),
        _bytes(f"an exposure of {SHOWN} items", shown / count, count),
    ]


def _event(number: int, user_id: str | None, now: float) -> Event:
    request = f"{number:024x}"
    kind = IMPRESSION if user_id is None else CLICK
    return Event(f"e-{number:016x}", kind, request, f"item{number:07d}", user_id, now + number, 3)


def _exposure(number: int, now: float) -> Exposure:
    return Exposure(
        *("", "champion", f"user:user-{number:06d}", f"{number:024x}", now),
        items=tuple(f"item{number * SHOWN + place:07d}" for place in range(SHOWN)),
        query="solid oak writing desk",
        history_items=3,
        model_version="73c0565dca5a",
        index_version="db67bd4acb8a",
    )


async def _memory_of(redis: RedisConnection, key: str) -> int:
    return int(await redis.command("MEMORY", "USAGE", key, "SAMPLES", 0) or 0)


def _bytes(what: str, size: float, entries: int) -> Row:
    return row("Redis, memory of", {"what": what, "entries": entries}, size, {}, "bytes")


def _gateway(snapshot: Path | None, checkpoint: Path | None) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="onesearch-footprint-") as folder:
        if snapshot is None or checkpoint is None:
            snapshot, checkpoint = demo_pair(Path(folder))
        return [_serving_row(snapshot, checkpoint, Path(folder))]


def _serving_row(snapshot: Path, checkpoint: Path, folder: Path) -> Row:
    bodies = [
        json.dumps({"query": query, "beam_width": BEAM_WIDTHS[number % len(BEAM_WIDTHS)]}).encode()
        for number, query in enumerate(queries_of(snapshot))
    ]
    requests = [post("/v1/search", body) for body in bodies]
    arguments = ["--snapshot", str(snapshot), "--checkpoint", str(checkpoint)]
    settings = {
        "ONESEARCH_EVENTS": "false",
        "ONESEARCH_LIVE_DIRECTORY": str(folder / "live"),
        "NUMBA_CACHE_DIR": str(folder / "numba"),
    }
    with running(arguments, folder, settings) as (port, process):
        begun = _memory_mb(process)
        random = np.random.default_rng(0)
        in_loop(press(port, requests, clients=CLIENTS, seconds=SECONDS, random=random))
        used = _memory_mb(process)
    counts: dict[str, Any] = read(snapshot, "snapshot", verify=False).extra["counts"]
    return row(
        "gateway, memory",
        {"items": counts["items"], "SIDs": counts["sids"]},
        used,
        {},
        "MB",
        before_searches_mb=begun,
        dimension=counts["dimension"],
        snapshot_mb=_megabytes(snapshot),
        checkpoint_mb=_megabytes(checkpoint),
    )


def _memory_mb(process: int) -> float:
    """Proportional set size of a process and its children."""
    whole = psutil.Process(process)
    family = [whole, *whole.children(recursive=True)]
    return float(f"{sum(one.memory_full_info().pss for one in family) / 1e6:.4g}")


def _megabytes(folder: Path) -> float:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return float(f"{size / 1e6:.4g}")
