"""Workers on real servers: each query once, every failure in its place, kills survived."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench.kills import COMMAND, Survival, environment_of, survive
from server.keywords.generator import Failure, GenerationError, NullGenerator
from server.keywords.jobs import Priority
from server.keywords.keywords import KeywordRequest, Keywords
from server.keywords.metrics import WorkerMetrics
from server.keywords.queue import KeywordQueue
from server.keywords.worker import Worker
from server.keywords.worker_plan import Tally, WorkerPlan
from server.logs import make_logger
from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer
from server.redis.keys import Keys

WithRedis = Callable[..., Any]


class Recorded(NullGenerator):
    """Remembers what it was asked. `broken`: by query, what is raised or answered instead."""

    def __init__(self, delay_s: float = 0.0, **broken: Any) -> None:
        super().__init__(delay_s)
        self.asked: Counter[str] = Counter()
        self.batches: list[int] = []
        self.broken = broken

    async def generate(
        self, requests: Sequence[KeywordRequest]
    ) -> list[Keywords | GenerationError]:
        self.batches.append(len(requests))
        answers = await super().generate(requests)
        for place, request in enumerate(requests):
            self.asked[request.query] += 1
            wrong = self.broken.get(request.query)
            if isinstance(wrong, Exception):
                raise wrong
            if wrong is not None:
                answers[place] = wrong
        return answers


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that another task does."""
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110  what is waited for sets no event
            await asyncio.sleep(0.01)


def worker(parts: Any, generator: Any, **plan: Any) -> Worker:
    settings = WorkerPlan(**{"retry_s": 0.02, "lease_s": 0.3, "until_empty": True, **plan})
    log = make_logger("error", io.StringIO())
    metrics = WorkerMetrics(generator.name)
    return Worker(parts.queue, parts.store, parts.keys, generator, metrics, log, settings)


async def worked_off(parts: Any, generator: Any, *queries: str, **plan: Any) -> Tally:
    requests = [KeywordRequest(query) for query in queries]
    await parts.queue.enter(requests, Priority.WARM, generator.version)
    return await asyncio.wait_for(worker(parts, generator, **plan).run(asyncio.Event()), 60)


def test_each_query_is_generated_once_in_batches(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        generator = Recorded()
        queries = [f"query {number % 700}" for number in range(1000)]
        tally = await worked_off(parts, generator, *queries, batch=64, concurrency=3)
        assert set(generator.asked.values()) == {1}
        assert [len(generator.asked), tally.nothing, tally.dead] == [700, 700, 0]
        assert max(generator.batches) == 64
        assert await parts.store.version() == generator.version
        # Once more there is nothing to do.
        tally = await worked_off(parts, generator, *queries)
        assert tally == Tally()
        status = await parts.queue.status()
        assert [status.jobs, status.dead, status.made] == [0, 0, 700]

    with_redis(work)


def test_a_job_that_breaks_the_generator_is_tried_alone_then_a_dead_letter(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        generator = Recorded(poison=ValueError("no such thing"))
        tally = await worked_off(parts, generator, "a", "poison", "b", attempts=3)
        assert [tally.nothing, tally.retried, tally.dead] == [2, 2, 1]
        [letter] = await parts.dead.newest(9)
        assert letter.job.request.query == "poison"
        assert "ValueError: no such thing" in letter.reason
        # Mended and replayed, it is made.
        generator.broken.clear()
        await parts.dead.replay(None, generator.version)
        assert (await worked_off(parts, generator)).nothing == 1
        [stored] = await parts.store.read(generator.version, "poison", (None,))
        assert stored.keywords is not None

    with_redis(work)


def test_failures_end_as_their_kind_says(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        generator = Recorded(
            refused=GenerationError(Failure.REFUSED, "will not"),
            slow=GenerationError(Failure.TIMEOUT, "too slow"),
            away=GenerationError(Failure.UNAVAILABLE, "no service"),
        )
        running = asyncio.create_task(
            worked_off(parts, generator, "refused", "slow", "away", attempts=2)
        )
        await until(lambda: generator.asked["away"] >= 6)
        # A service that is away is not the job's fault, however often it was tried.
        generator.broken.pop("away")
        tally = await running
        assert [tally.nothing, tally.dead] == [1, 2]
        assert [generator.asked["refused"], generator.asked["slow"]] == [1, 2]
        reasons = {one.job.request.query: one.reason for one in await parts.dead.newest(9)}
        assert reasons == {"refused": "refused: will not", "slow": "timeout: too slow"}

    with_redis(work)


def test_a_service_that_says_when_to_come_back_is_left_alone(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        away = GenerationError(Failure.UNAVAILABLE, "away", retry_after_s=2.0)
        generator = Recorded(**{"0": away})
        requests = [KeywordRequest(str(number)) for number in range(40)]
        await parts.queue.enter(requests, Priority.WARM, None)
        stop, plan = asyncio.Event(), {"batch": 1, "concurrency": 1, "until_empty": False}
        began = time.monotonic()
        running = asyncio.create_task(worker(parts, generator, **plan).run(stop))
        await until(lambda: bool(generator.asked))
        await asyncio.sleep(0.2)
        assert sum(generator.asked.values()) == 1
        generator.broken.clear()
        await until(lambda: len(generator.asked) == 40)
        assert time.monotonic() - began > 2.0
        stop.set()
        await asyncio.wait_for(running, 60)

    with_redis(work)


def test_a_worker_that_leaves_its_service_alone_ends_when_told(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        generator = Recorded(a=GenerationError(Failure.BUDGET, "spent", retry_after_s=60))
        await parts.queue.enter([KeywordRequest("a")], Priority.LIVE, None)
        stop = asyncio.Event()
        running = asyncio.create_task(worker(parts, generator, until_empty=False).run(stop))
        await until(lambda: bool(generator.asked))
        stop.set()
        assert (await asyncio.wait_for(running, 60)).retried == 1

    with_redis(work)


def test_stopping_finishes_what_is_in_hand_and_leaves_the_rest(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        generator = Recorded(delay_s=0.5)
        await parts.queue.enter(
            [KeywordRequest(str(number)) for number in range(50)], Priority.WARM, None
        )
        stop = asyncio.Event()
        running = asyncio.create_task(
            worker(parts, generator, batch=5, concurrency=2, until_empty=False).run(stop)
        )
        await until(lambda: bool(generator.batches))
        stop.set()
        tally = await asyncio.wait_for(running, 60)
        assert tally.nothing == sum(generator.batches) <= 10
        status = await parts.queue.status()
        assert [status.jobs, status.in_hand] == [50 - tally.nothing, 0]

    with_redis(work)


def test_what_is_not_done_in_time_when_stopping_goes_to_another_worker(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        await parts.queue.enter([KeywordRequest("a")], Priority.LIVE, None)
        stop = asyncio.Event()
        slow = Recorded(delay_s=30)
        running = asyncio.create_task(worker(parts, slow, until_empty=False, drain_s=0.1).run(stop))
        await until(lambda: bool(slow.batches))
        stop.set()
        assert (await asyncio.wait_for(running, 60)).nothing == 0
        assert (await worked_off(parts, Recorded())).nothing == 1

    with_redis(work)


def test_a_slow_batch_keeps_its_lease(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        slow, idle = Recorded(delay_s=1.0), Recorded()
        await parts.queue.enter([KeywordRequest("a")], Priority.LIVE, None)
        first = asyncio.create_task(worker(parts, slow).run(asyncio.Event()))
        await until(lambda: bool(slow.batches))
        second = await asyncio.wait_for(worker(parts, idle).run(asyncio.Event()), 60)
        assert [(await first).nothing, second] == [1, Tally()]

    with_redis(work)


def test_a_restart_of_redis_in_the_middle_loses_nothing(
    with_redis: WithRedis, redis_server: EmbeddedServer
):
    async def work(parts: Any) -> None:
        generator = Recorded(delay_s=0.02)
        queries = [f"query {number}" for number in range(400)]
        requests = [KeywordRequest(query) for query in queries]
        await parts.queue.enter(requests, Priority.WARM, generator.version)
        running = asyncio.create_task(worker(parts, generator, batch=8).run(asyncio.Event()))
        await until(lambda: len(generator.asked) >= 100)
        pid = redis_server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        tally = await asyncio.wait_for(running, 60)
        assert tally.dead == 0
        assert len(generator.asked) == 400
        status = await parts.queue.status()
        assert [status.jobs, status.made] == [0, 400]

    with_redis(work)


def test_killed_workers_and_a_killed_redis_lose_nothing(
    redis_server: EmbeddedServer, tmp_path: Path
):
    found = survive(redis_server, jobs=400, kills=4, log=tmp_path / "log")
    assert found == Survival(left=0, dead=0, made=400, stored=400, kills=4)


@pytest.mark.slow
def test_five_thousand_jobs_under_fire(redis_server: EmbeddedServer, tmp_path: Path):
    found = survive(redis_server, jobs=5000, kills=20, log=tmp_path / "log")
    assert found == Survival(left=0, dead=0, made=5000, stored=5000, kills=20)


def test_a_worker_process_drains_at_sigterm_and_says_what_it_did(redis_server: EmbeddedServer):
    async def enter() -> None:
        redis = RedisConnection(redis_server.url, 1.0)
        await redis.command("FLUSHALL")
        requests = [KeywordRequest(str(number)) for number in range(100)]
        await KeywordQueue(redis, Keys()).enter(requests, Priority.LIVE, None)
        await redis.close()

    asyncio.run(enter())
    environment = environment_of(redis_server)
    arguments = ["worker", "--generator", "null", "--null-delay-s", "0.6", "--batch", "10"]
    child = subprocess.Popen(
        [*COMMAND, *arguments, "--json"],
        env=environment | {"ONESEARCH_LOG_LEVEL": "info"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    for line in child.stderr:
        if '"event":"working"' in line:
            break
    time.sleep(0.3)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert json.loads(out)["nothing"] in (10, 20)
