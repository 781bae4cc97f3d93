"""taskiq with taskiq-redis's stream broker, doing what our queue does: a value stored per job.

Two streams, live and warm, jobs already waiting; its receiver runs in this process, as a worker
of ours does.
"""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from importlib.util import find_spec
from typing import Any

from server.redis.connection import RedisConnection

MISSING = "taskiq and taskiq-redis are not installed"
LIVE, WARM, GROUP = "taskiq:live", "taskiq:warm", "taskiq:workers"
TASKS = 64
CONNECTIONS = 100
ENDINGS = 6


def is_installed() -> bool:
    """Whether the peer can run."""
    return find_spec("taskiq") is not None and find_spec("taskiq_redis") is not None


class TaskiqPeer:
    """One worker; `done` are its jobs' names in the order of their ends."""

    def __init__(self, url: str, redis: RedisConnection, idle_s: float) -> None:
        from taskiq_redis import RedisStreamBroker

        self.done: list[str] = []
        self._redis = redis
        self._broker: Any = RedisStreamBroker(
            url,
            queue_name=LIVE,
            additional_streams={WARM: ">"},
            consumer_group_name=GROUP,
            consumer_id="0",
            idle_timeout=round(idle_s * 1000),
            xread_block=200,
            max_connection_pool_size=CONNECTIONS,
        )

        async def make(name: str) -> None:
            await redis.command("SET", f"taskiq:value:{name}", name, "EX", 60)
            self.done.append(name)

        self._task: Any = self._broker.register_task(make, "make")

    async def start(self) -> None:
        """Make the streams' groups."""
        self._broker.is_worker_process = True
        await self._broker.startup()

    async def enter(self, names: list[str], stream: str) -> None:
        """Put jobs into a stream, as the broker writes them."""
        for name in names:
            message = self._broker.formatter.dumps(self._task.kicker()._prepare_message(name))
            await self._redis.command("XADD", stream, "*", "data", message.message)

    async def work(self, count: int, longest_s: float) -> float | None:
        """Work until `count` jobs are done; the seconds, None when that takes too long or the
        receiver ends."""
        from taskiq.acks import AcknowledgeType
        from taskiq.receiver import Receiver

        receiver: Any = Receiver(
            self._broker,
            max_async_tasks=TASKS,
            max_prefetch=TASKS,
            run_startup=False,
            ack_type=AcknowledgeType.WHEN_EXECUTED,
        )
        finish = asyncio.Event()
        running = asyncio.ensure_future(receiver.listen(finish))
        began = time.perf_counter()
        while len(self.done) < count and not running.done():
            await asyncio.sleep(0.002)
            if time.perf_counter() - began > longest_s:
                break
        seconds = time.perf_counter() - began
        finish.set()
        for _ in range(ENDINGS):
            # Its listener sometimes takes a cancellation for a lost connection and goes on.
            running.cancel()
            await asyncio.wait((running,), timeout=0.5)
        await asyncio.gather(*(() if not running.done() else (running,)), return_exceptions=True)
        return seconds if len(self.done) >= count else None

    async def steal(self) -> None:
        """Take all that waits in the name of a worker that dies at once."""
        await self._redis.command(
            "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 1000, "STREAMS", LIVE, ">"
        )

    async def entries(self) -> int:
        """What is left in the streams."""
        return sum([int(await self._redis.command("XLEN", stream)) for stream in (LIVE, WARM)])

    async def close(self) -> None:
        """End its connections."""
        await self._broker.shutdown()
        with warnings.catch_warnings():
            # A listener that is cancelled while it acknowledges leaves a pipeline open.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
