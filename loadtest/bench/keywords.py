"""Keywords: what the request path pays for them, and the queue beside taskiq's.

Tables:

reads      what a search pays for a hit: remembered by the process, or read from Redis
searches   p99 of `/v1/search` with warm keywords, an empty store, a full queue, a generator that
           takes 30 seconds, and with Redis that refuses or hangs; a server for each, in turns, with
           one client that sends its next search when it has its answer, and with searches that come
           at random times, 60 a second, whatever became of those before; the median
           of the turns' p99
jobs       jobs per second of one worker with a null generator: ours, and taskiq with taskiq-redis's
           stream broker, which stores one value per job as well; what each leaves in Redis; which
           share of the warm jobs was handed out before the last live one
recovery   seconds until the job of a worker that died is done by another, while no new job comes
kills      5,000 jobs (quick: 500) while workers are killed at random and Redis once

Redis is an embedded server in a temporary folder, on a private socket; all stays on this machine.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry

from loadtest.bench.kills import COMMAND, survive
from loadtest.bench.load import ANSWERED, Tally, offer, press
from loadtest.bench.overload import Server, demo_pair, serving
from loadtest.bench.report import Row, row
from loadtest.bench.taskiq_peer import LIVE, MISSING, WARM, TaskiqPeer, is_installed
from server.cli.serve import loop_factory
from server.keywords.generator import NullGenerator
from server.keywords.jobs import Priority
from server.keywords.keywords import Analysis, KeywordRequest, Keywords, Source, keywords_to_json
from server.keywords.metrics import ReaderMetrics, WorkerMetrics
from server.keywords.queue import KeywordQueue
from server.keywords.reader import KeywordReader
from server.keywords.store import KeywordStore
from server.keywords.worker import Worker
from server.keywords.worker_plan import WorkerPlan
from server.logs import make_logger
from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer
from server.redis.keys import Keys

VERSION = "bench"
TIMEOUT_S = 1.0
BUDGET_S = 1.0
MEMORY_BOUND_US = 5.0
REDIS_BOUND_MS = 0.3
ALLOWED_MS = 5.0
JOBS_BOUND = 1000.0
SLOW_S = 30.0
RATE = 60.0
CLIENT_S, RATE_S = 1.0, 2.5
"""Of one turn of a server, with one client and with `RATE` searches a second."""
ONE_CLIENT, AT_RATE = "one client", f"{RATE:.0f} a second"
LEASE_S = 1.0
PATIENCE_S = 6.0
Result = TypeVar("Result")


def rows(
    quick: bool = False, *, snapshot: Path | None = None, checkpoint: Path | None = None
) -> list[Row]:
    """All tables; without a pair, a small simulated shop is built first."""
    found = [one for part in (reads, jobs, recovery, kills) for one in part(quick)]
    return found + _searches(quick, snapshot, checkpoint)


def reads(quick: bool = False) -> list[Row]:
    """Hits, one after the other."""
    return _with_redis(lambda server: _reads(server, 2000 if quick else 20_000))


def jobs(quick: bool = False) -> list[Row]:
    """Throughput, what is left behind, priorities."""
    return _with_redis(lambda server: _jobs(server, 2000 if quick else 10_000))


def recovery(quick: bool = False) -> list[Row]:
    """A worker died and nothing else happens."""
    return _with_redis(_recovery)


def kills(quick: bool = False) -> list[Row]:
    """Workers and Redis are killed."""
    count, killed = (500, 5) if quick else (5000, 20)
    with _embedded() as (server, folder):
        began = time.perf_counter()
        found = survive(server, count, killed, folder / "workers.log")
        seconds = time.perf_counter() - began
    return [
        row(
            "jobs lost under kill -9",
            {"jobs": count, "workers killed": found.kills, "Redis killed": 1},
            float(count - found.stored),
            {"bound": 0.0},
            "jobs",
            left=found.left,
            dead_letters=found.dead,
            made_once=found.made,
            seconds=round(seconds, 1),
        )
    ]


def searches(quick: bool = False) -> list[Row]:
    """What a search waits for keywords."""
    return _searches(quick, None, None)


TABLES = {
    "reads": reads,
    "searches": searches,
    "jobs": jobs,
    "recovery": recovery,
    "kills": kills,
}


@contextmanager
def _embedded() -> Generator[tuple[EmbeddedServer, Path], None, None]:
    with tempfile.TemporaryDirectory(prefix="onesearch-keywords-") as folder:
        server = EmbeddedServer(Path(folder) / "redis")
        server.start()
        try:
            yield server, Path(folder)
        finally:
            server.stop()


def _in_loop(work: Awaitable[Result]) -> Result:
    async def run() -> Result:
        return await work

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(run())


def _with_redis(work: Callable[[EmbeddedServer], Awaitable[list[Row]]]) -> list[Row]:
    with _embedded() as (server, _):
        return _in_loop(work(server))


def _stored_value(query: str) -> bytes:
    terms = ("oak", "office", "writing desk", "solid wood")
    made = Keywords(query, terms, (), Analysis(topics=("desk",)), Source(VERSION), time.time())
    return keywords_to_json(made)


async def _reads(server: EmbeddedServer, count: int) -> list[Row]:
    redis, keys = RedisConnection(server.url, TIMEOUT_S), Keys()
    requests = [KeywordRequest(f"Solid oak writing desk {number}") for number in range(count)]
    for request in requests:
        key = keys.keywords(VERSION, request.normalised, None)
        await redis.command("SET", key, _stored_value(request.normalised))
    store = KeywordStore(redis, keys, entries=count)
    await store.announce(VERSION)
    log, counts = make_logger("error", io.StringIO()), ReaderMetrics(CollectorRegistry())
    reader = KeywordReader(redis, store, KeywordQueue(redis, keys), counts, log, BUDGET_S)
    reader.look_up(requests[0])
    while reader.status is None:  # noqa: ASYNC110  it sets no event
        await asyncio.sleep(0.01)
    samples: dict[str, list[float]] = {"Redis": [], "memory": []}
    for source, scale in (("Redis", 1e3), ("memory", 1e6)):
        for request in requests:
            began = time.perf_counter()
            found = await reader.found(reader.look_up(request))
            samples[source].append((time.perf_counter() - began) * scale)
            assert found.state == "hit"
    known: list[float] = []
    for request in requests:
        query = request.normalised
        began = time.perf_counter()
        store.remembered(VERSION, query, None)
        known.append((time.perf_counter() - began) * 1e6)
    await reader.close()
    whole, alone = np.array(samples["memory"]), np.array(known)
    distant = np.array(samples["Redis"][count // 10 :])
    setting = {"hits": count}
    return [
        row(
            "a hit that the process remembers",
            {"step": "look-up in memory", **setting},
            float(np.median(alone)),
            {"bound": MEMORY_BOUND_US},
            "us",
            p99_us=_rounded(np.quantile(alone, 0.99)),
        ),
        row(
            "a hit that the process remembers",
            {"step": "with normal form and counters", **setting},
            float(np.median(whole)),
            {"bound": MEMORY_BOUND_US},
            "us",
            p99_us=_rounded(np.quantile(whole, 0.99)),
        ),
        row(
            "a hit that is read from Redis",
            setting,
            float(np.median(distant)),
            {"bound": REDIS_BOUND_MS},
            "ms",
            p99_ms=_rounded(np.quantile(distant, 0.99)),
        ),
    ]


def _worker(queue: KeywordQueue, store: KeywordStore, generator: NullGenerator) -> Worker:
    log = make_logger("error", io.StringIO())
    plan = WorkerPlan(until_empty=True, batch=64, lease_s=LEASE_S)
    return Worker(queue, store, Keys(), generator, WorkerMetrics("null"), log, plan)


class _Ordered(NullGenerator):
    """Remembers the order in which it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def generate(self, requests: Sequence[KeywordRequest]) -> Any:
        self.asked += [request.query for request in requests]
        return await super().generate(requests)


async def _jobs(server: EmbeddedServer, count: int) -> list[Row]:
    redis = RedisConnection(server.url, TIMEOUT_S)
    await redis.command("FLUSHALL")
    queue = KeywordQueue(redis, Keys(), consumer="bench")
    store, generator = KeywordStore(redis, Keys()), _Ordered()
    live, warm = ([f"{kind} {n}" for n in range(count // 2)] for kind in ("live", "warm"))
    began = time.perf_counter()
    for names, priority in ((warm, Priority.WARM), (live, Priority.LIVE)):
        await queue.enter([KeywordRequest(name) for name in names], priority, VERSION)
    entering_s = time.perf_counter() - began
    worker = _worker(queue, store, generator)
    began = time.perf_counter()
    await worker.run(asyncio.Event())
    seconds = time.perf_counter() - began
    left = [int(await redis.command("XLEN", stream)) for stream in (Keys().live, Keys().warm)]
    early = _share_before_last_live(generator.asked)
    theirs: dict[str, Any] = {"jobs": MISSING, "left": MISSING, "early": MISSING}
    if is_installed():
        peer = TaskiqPeer(server.url, redis, LEASE_S)
        await peer.start()
        await peer.enter(warm, WARM)
        await peer.enter(live, LIVE)
        took = await peer.work(count, longest_s=60.0)
        theirs = {
            "jobs": count / took if took else "not done within a minute",
            "left": float(await peer.entries()),
            "early": _share_before_last_live(peer.done),
        }
        await peer.close()
    await redis.close()
    setting = {"jobs": count}
    return [
        row(
            "jobs through the queue, one worker, null generator",
            setting,
            count / seconds,
            {"taskiq-redis": theirs["jobs"], "bound": JOBS_BOUND},
            "1/s",
            higher_is_better=True,
            entered_per_s=_rounded(count / entering_s),
        ),
        row(
            "stream entries left when all jobs are done",
            setting,
            float(sum(left)),
            {"taskiq-redis": theirs["left"]},
            "entries",
        ),
        row(
            "warm jobs handed out before the last live one",
            setting,
            early,
            {"taskiq-redis": theirs["early"]},
            "%",
        ),
    ]


def _share_before_last_live(names: Sequence[str]) -> float:
    last = max(place for place, name in enumerate(names) if name.startswith("live"))
    warm = [place for place, name in enumerate(names) if name.startswith("warm")]
    return 100 * sum(place < last for place in warm) / len(warm)


async def _recovery(server: EmbeddedServer) -> list[Row]:
    redis = RedisConnection(server.url, TIMEOUT_S)
    await redis.command("FLUSHALL")
    dead = KeywordQueue(redis, Keys(), consumer="dead", lease_s=LEASE_S)
    alive = KeywordQueue(redis, Keys(), consumer="alive", lease_s=LEASE_S)
    await dead.enter([KeywordRequest("desk")], Priority.LIVE, None)
    assert (await dead.take(1)).jobs
    began = time.perf_counter()
    await _worker(alive, KeywordStore(redis, Keys()), NullGenerator()).run(asyncio.Event())
    seconds = time.perf_counter() - began
    peer_s: float | str = MISSING
    if is_installed():
        peer = TaskiqPeer(server.url, redis, LEASE_S)
        await peer.start()
        await peer.enter(["desk"], LIVE)
        await peer.steal()
        took = await peer.work(1, longest_s=PATIENCE_S)
        peer_s = took or f"not done within {PATIENCE_S:.0f} s: it looks when another job comes"
        await peer.close()
    await redis.close()
    return [
        row(
            "the job of a worker that died is done by another",
            {"given up after s": LEASE_S},
            seconds,
            {"taskiq-redis": peer_s},
            "s",
        )
    ]


def _searches(quick: bool, snapshot: Path | None, checkpoint: Path | None) -> list[Row]:
    rounds = 2 if quick else 5
    with _embedded() as (redis_server, folder), ExitStack() as stack:
        if snapshot is None or checkpoint is None:
            snapshot, checkpoint = demo_pair(folder)
        hanging = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        settings = {
            "warm keywords": {},
            "empty store": {},
            "full queue": {"ONESEARCH_KEYWORD_QUEUE_LIMIT": "1"},
            "30 s generator": {},
            "Redis refuses": {"ONESEARCH_REDIS_URL": f"unix://{folder}/none.sock"},
            "Redis hangs": {"ONESEARCH_REDIS_URL": f"redis://127.0.0.1:{hanging.getsockname()[1]}"},
        }
        servers: dict[str, Server] = {}
        for number, (name, own) in enumerate(settings.items()):
            place = folder / f"server {number}"
            place.mkdir()
            environment = {
                "ONESEARCH_CATALOGUE_CHANGES": "false",
                "ONESEARCH_KEYWORDS": "student",
                "ONESEARCH_REDIS_URL": redis_server.url,
                "ONESEARCH_REDIS_PREFIX": f"bench{number}",
            }
            servers[name] = stack.enter_context(
                serving(snapshot, checkpoint, place, environment | own)
            )
        slow_prefix = f"bench{list(settings).index('30 s generator')}"
        stack.enter_context(_slow_worker(redis_server, slow_prefix))
        return _in_loop(_measure(redis_server, list(settings), servers, rounds))


async def _measure(
    redis_server: EmbeddedServer,
    names: list[str],
    servers: dict[str, Server],
    rounds: int,
) -> list[Row]:
    redis = RedisConnection(redis_server.url, TIMEOUT_S)
    for number, name in enumerate(names):
        keys = Keys(f"bench{number}")
        if name == "30 s generator":
            continue
        await KeywordStore(redis, keys).announce(VERSION)
        if name == "full queue":
            queue = KeywordQueue(redis, keys, limit=1)
            await queue.enter([KeywordRequest("first")], Priority.LIVE, None)
        if name == "warm keywords":
            for query in servers[name].queries:
                request = KeywordRequest(query)
                key = keys.keywords(VERSION, request.normalised, None)
                await redis.command("SET", key, _stored_value(request.normalised))
    await redis.close()
    for name in names:
        await _searched(servers[name], ONE_CLIENT, seed=rounds)
    found: dict[tuple[str, str], list[Tally]] = {
        (load, name): [] for load in (ONE_CLIENT, AT_RATE) for name in names
    }
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            for load in (ONE_CLIENT, AT_RATE):
                # The same searches at the same times for all: chance makes no difference.
                found[load, name].append(await _searched(servers[name], load, seed=number))
    latencies = {key: [_milliseconds(tally) for tally in tallies] for key, tallies in found.items()}
    rows: list[Row] = []
    for (load, name), tallies in found.items():
        own, calm = (_p99s(latencies[load, state]) for state in (name, "warm keywords"))
        rows.append(
            row(
                "p99 of /v1/search by the state of the keywords",
                {"load": load, "state": name},
                own,
                {"warm keywords + 5 ms": float(np.median(calm)) + ALLOWED_MS},
                "ms",
                p50_ms=_rounded(np.median(np.concatenate(latencies[load, name]))),
                offered=sum(tally.offered for tally in tallies),
                answered=sum(len(part) for part in latencies[load, name]),
                degraded=sum(tally.outcomes["degraded"] for tally in tallies),
            )
        )
    return rows


async def _searched(server: Server, load: str, seed: int) -> Tally:
    # One client: a search's own time, not how long it stood in a queue.
    random = np.random.default_rng(seed)
    port, requests = server.port, server.requests()
    if load == ONE_CLIENT:
        return await press(port, requests, clients=1, seconds=CLIENT_S, random=random)
    return await offer(port, requests, rate=RATE, seconds=RATE_S, random=random)


def _milliseconds(tally: Tally) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What all answers took."""
    found = [value for outcome in ANSWERED for value in tally.latencies.get(outcome, ())]
    return np.array(found) * 1000


def _p99s(turns: Sequence[np.ndarray[Any, np.dtype[np.float64]]]) -> list[float]:
    return [float(np.quantile(turn, 0.99)) for turn in turns]


@contextmanager
def _slow_worker(server: EmbeddedServer, prefix: str) -> Generator[None, None, None]:
    arguments = ["worker", "--generator", "null", "--null-delay-s", str(SLOW_S)]
    environment = os.environ | {
        "ONESEARCH_REDIS_URL": server.url,
        "ONESEARCH_REDIS_PREFIX": prefix,
        "ONESEARCH_LOG_LEVEL": "error",
    }
    with subprocess.Popen([*COMMAND, *arguments], env=environment, stderr=sys.stderr) as child:
        try:
            yield
        finally:
            child.kill()


def _rounded(value: Any) -> float:
    return float(f"{float(value):.4g}")
