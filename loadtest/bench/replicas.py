"""Three servers on one registry: how long after a decision the last of them serves it.

The decision is a line in the registry that this process writes, as `onesearch generations promote`
and `rollback` do, and announces where there is a Redis to announce in. Weights only, or another
snapshot too; nobody searches meanwhile. `announced`: Redis is there; `Redis away`: it was stopped
after the servers had started, so they look into the directory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import numpy as np

from index.errors import OnesearchError
from loadtest.bench.overload import running
from loadtest.bench.report import Row, row
from loadtest.bench.swap_stock import BY, Stock
from models.registry import promotion
from models.registry.registry import Registry
from server.redis.announcements import announce_once
from server.redis.embedded import EmbeddedServer, answers, socket_of
from server.settings import load

REPLICAS = 3
LOOK_S = 0.005
LONGEST_S = 60.0
Turns = Sequence[tuple[bool, str]]


def measure(stock: Stock, folder: Path, turns: Turns) -> list[Row]:
    """A row for each way on which servers learn of a decision, and each kind of decision. `turns`:
    whether each is a rollback, and whom it makes champion."""
    table: list[Row] = []
    redis = EmbeddedServer(folder / "redis")
    redis.start()
    with ExitStack() as stack:
        stack.callback(redis.stop)
        # Without changes of the catalogue, of which one server only could take them.
        own = {
            "ONESEARCH_REGISTRY": str(stock.path),
            "ONESEARCH_KEYWORDS": "off",
            "ONESEARCH_EVENTS": "false",
            "ONESEARCH_CATALOGUE_CHANGES": "false",
            "ONESEARCH_REDIS_URL": redis.url,
            "ONESEARCH_ENGINE_THREADS": "1",
        }
        ports: list[int] = []
        for number in range(REPLICAS):
            place = folder / f"replica-{number}"
            place.mkdir()
            ports.append(stack.enter_context(running([], place, own))[0])
        table += _rows("announced", _converge(stock, ports, turns, redis.url))
        redis.stop()
        if answers(socket_of(folder / "redis")):
            raise OnesearchError(
                "Redis is there still, so nothing can be said of how it is without"
            )
        table += _rows("Redis away", _converge(stock, ports, turns, redis.url))
    return table


def _rows(way: str, seconds: dict[str, list[float]]) -> list[Row]:
    return [
        row(
            "decision to the last of three servers",
            {"learnt": way, "decision": what, "decisions": len(found)},
            [one * 1000 for one in found],
            {},
            "ms",
            slowest_ms=round(max(found) * 1000, 1),
            p99_ms=round(float(np.quantile(found, 0.99)) * 1000, 1),
        )
        for what, found in seconds.items()
        if found
    ]


def _converge(
    stock: Stock, ports: Sequence[int], turns: Turns, redis_url: str
) -> dict[str, list[float]]:
    """Seconds until the last server serves it, by kind of decision."""
    registry = Registry(stock.path)
    settings = load(redis_url=redis_url)
    random = np.random.default_rng(4)
    found: dict[str, list[float]] = {"promotion": [], "rollback": []}
    with ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10))
            for port in ports
        ]
        # As `turns` has it: the first is champion, the last was before it.
        for version in (stock.versions[-1], stock.first):
            promotion.promote(registry, version, verify=False, by=BY)
            _wait_for(clients, version)
        for rolls_back, target in turns:
            # Not in step with how often they look.
            time.sleep(float(random.uniform(1.0, 1.5)))
            began = time.perf_counter()
            if rolls_back:
                state = promotion.rollback(registry, verify=False, by=BY)
            else:
                state = promotion.promote(registry, target, verify=False, by=BY)
            # With Redis away nobody is told, as when a command is run then.
            with suppress(OnesearchError):
                asyncio.run(announce_once(settings, state))
            _wait_for(clients, state.champion)
            found["rollback" if rolls_back else "promotion"].append(time.perf_counter() - began)
    return found


def _wait_for(clients: Sequence[httpx.Client], version: str | None) -> None:
    ends, waiting = time.monotonic() + LONGEST_S, list(clients)
    while waiting:
        waiting = [one for one in waiting if _served(one) != version]
        if time.monotonic() > ends:
            told = waiting[0].get("/readyz").json()["generation"]["problem"]
            raise OnesearchError(
                f"a server does not serve {version}: {told or 'it says no reason'}"
            )
        time.sleep(LOOK_S)


def _served(client: httpx.Client) -> str:
    return client.get("/readyz").json()["generation"]["version"]
