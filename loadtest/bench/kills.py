"""Two worker processes that are killed at random while they work off a queue, Redis once.

What is counted afterwards must not depend on the kills: no job left, each answer stored and handed
to training once, no dead letter.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.keywords.jobs import Priority
from server.keywords.keywords import KeywordRequest
from server.keywords.queue import KeywordQueue
from server.redis.connection import RedisConnection, RedisUnavailable
from server.redis.embedded import EmbeddedServer
from server.redis.keys import Keys

WORKERS = 2
LEASE_S = 0.5
LOOK_S = 0.05
LONGEST_S = 240.0
COMMAND = (sys.executable, "-c", "from server.cli.main import run; run()")
ARGUMENTS = ("worker", "--generator", "null", "--null-delay-s", "0.05", "--batch", "8")


@dataclass(frozen=True, slots=True)
class Survival:
    """What is left: jobs not done, dead letters, answers for training, stored answers."""

    left: int
    dead: int
    made: int
    stored: int
    kills: int


def environment_of(server: EmbeddedServer) -> dict[str, str]:
    """The environment of worker processes that use a server and are soon given up."""
    return os.environ | {
        "ONESEARCH_REDIS_URL": server.url,
        "ONESEARCH_KEYWORD_LEASE_S": str(LEASE_S),
        "ONESEARCH_LOG_LEVEL": "error",
    }


def survive(server: EmbeddedServer, jobs: int, kills: int, log: Path) -> Survival:
    """Empty the server, enter jobs, kill a worker `kills` times, evenly over the jobs, and with the
    middle one Redis too. What workers say goes to `log`."""
    environment = environment_of(server)
    with log.open("wb") as stream:

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen([*COMMAND, *ARGUMENTS], env=environment, stderr=stream)

        workers = [start() for _ in range(WORKERS)]
        try:
            return asyncio.run(_survive(server, jobs, kills, workers, start))
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


async def _survive(
    server: EmbeddedServer,
    jobs: int,
    kills: int,
    workers: list[subprocess.Popen[bytes]],
    start: Callable[[], subprocess.Popen[bytes]],
) -> Survival:
    chosen = random.Random(jobs)
    redis = RedisConnection(server.url, 1.0)
    queue = KeywordQueue(redis, Keys())
    await redis.command("FLUSHALL")
    requests = [KeywordRequest(f"query {number}") for number in range(jobs)]
    await queue.enter(requests, Priority.WARM, None)
    until, killed, left = time.monotonic() + LONGEST_S, 0, jobs
    while left and time.monotonic() < until:
        await asyncio.sleep(LOOK_S)
        try:
            left = (await queue.status()).jobs
        except RedisUnavailable:
            continue
        if left and killed < kills and jobs - left > jobs * (killed + 1) / (kills + 2):
            killed += 1
            if killed == (kills + 1) // 2 and server.pid is not None:
                os.kill(server.pid, signal.SIGKILL)
            which = chosen.randrange(WORKERS)
            workers[which].kill()
            workers[which].wait()
            workers[which] = start()
    status = await queue.status()
    stored = await _stored(redis)
    await redis.close()
    return Survival(status.jobs, status.dead, status.made, stored, killed)


async def _stored(redis: RedisConnection) -> int:
    pattern = Keys().keywords("*", "", None).rpartition(":")[0] + ":*"
    found: set[bytes] = set()
    cursor: Any = b"0"
    while True:
        cursor, keys = await redis.command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
        found.update(keys)
        if int(cursor) == 0:
            return len(found)
