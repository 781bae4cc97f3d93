"""Generations swapped and rolled back while searches go on at 80 % of the sustainable load.

A server follows a registry of three generations (`loadtest.bench.swap_stock`). First each is live
for a moment, and its answers to all queries are kept. Then the sustainable load is found: a large
one at which, for two minutes, all are answered, none refused, and 99 % of them within a quarter of
a second (vLLM: twenty seconds, one second). At 80 % of it the admin API promotes and rolls back, in
turns that visit every pair alike: other weights, another snapshot, and back. Every answer is
checked against the generation that it names. Memory fills up in the first changes, so some go
before, at the same load and closer together; what was seen of them is told apart.

Tables: `native`, ten minutes with 20 promotions and 5 rollbacks; `vllm`, 5 swaps of the weights in
an engine that holds one set of them (only where vLLM is installed); what their rows say is told in
`loadtest.bench.swap_record`. `replicas`: three servers that follow (`loadtest.bench.replicas`).
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import orjson

from index.errors import OnesearchError
from loadtest.bench.load import Ended, Tally, offer, post
from loadtest.bench.overload import PAUSE_S, WARM_UP_S, demo_pair, in_loop, queries_of, running
from loadtest.bench.replicas import Turns
from loadtest.bench.replicas import measure as measure_replicas
from loadtest.bench.report import Row
from loadtest.bench.sustainable import BOUND_S, LESS, QUICK, WARM_UP_RATE, lasting_rate
from loadtest.bench.sustainable import Plan as SearchPlan
from loadtest.bench.swap_record import ENDED_WELL, ROUND, Record, Swap, table_of
from loadtest.bench.swap_stock import Judge, Stock, make_stock

LOAD = 0.8
LIMIT = 10
ADMIN_TIMEOUT_S = 120.0
SEARCH = QUICK._replace(search_s=4.0)
REFUSED_SHARE = 0.0
"""At the load that is called sustainable."""


class Plan(NamedTuple):
    """How long, and how many changes of the champion, rollbacks included. `search`: for the
    sustainable rate; `bound_s`: of 99 % of its answers; `first`: the rate that the search begins
    with; `less`: of one that did not last, what is tried next; `queries`: different ones; `before`:
    changes that are told apart, `before_s` seconds of them. `before` is of whole rounds."""

    seconds: float
    changes: int
    before: int
    before_s: float
    search: SearchPlan
    bound_s: float = BOUND_S
    first: float = WARM_UP_RATE
    less: float = LESS
    queries: int = 60


_NATIVE = Plan(600.0, 25, 10 * ROUND, 200.0, SEARCH._replace(lasts=(15.0, 60.0, 60.0)))
# Everything in five minutes, of which vLLM takes one to start.
_VLLM = Plan(
    50.0,
    5,
    ROUND,
    25.0,
    SEARCH._replace(steps=1, lasts=(20.0,)),
    bound_s=1.0,
    first=2.0,
    less=0.75,
    queries=12,
)
PLANS = {
    ("native", False): _NATIVE,
    ("native", True): _NATIVE._replace(
        seconds=40.0,
        changes=5,
        before=ROUND,
        before_s=20.0,
        search=SEARCH._replace(lasts=(15.0,)),
    ),
    ("vllm", False): _VLLM,
    ("vllm", True): _VLLM._replace(seconds=40.0),
}


def rows(
    quick: bool = False, *, snapshot: Path | None = None, checkpoint: Path | None = None
) -> list[Row]:
    """The native engine, and vLLM where it is installed; without a pair, a small simulated shop."""
    found = _run("native", quick, snapshot, checkpoint)
    if find_spec("vllm") is not None:
        found += _run("vllm", quick, snapshot, checkpoint)
    return found + _replicas(quick, snapshot, checkpoint)


def native(
    quick: bool = False, *, snapshot: Path | None = None, checkpoint: Path | None = None
) -> list[Row]:
    """20 promotions and 5 rollbacks in ten minutes."""
    return _run("native", quick, snapshot, checkpoint)


def vllm(
    quick: bool = False, *, snapshot: Path | None = None, checkpoint: Path | None = None
) -> list[Row]:
    """5 swaps. Raises OnesearchError where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise OnesearchError(
            "vLLM is not installed here; make vllm-env, then run .venv-vllm/bin/onesearch"
        )
    return _run("vllm", quick, snapshot, checkpoint)


def replicas(
    quick: bool = False, *, snapshot: Path | None = None, checkpoint: Path | None = None
) -> list[Row]:
    """How long after a decision the last of three servers serves it, with Redis and without."""
    return _replicas(quick, snapshot, checkpoint)


TABLES = {"native": native, "vllm": vllm, "replicas": replicas}


def _replicas(quick: bool, snapshot: Path | None, checkpoint: Path | None) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="onesearch-swaps-") as name:
        folder = Path(name)
        if snapshot is None or checkpoint is None:
            snapshot, checkpoint = demo_pair(folder)
        stock = make_stock(folder, snapshot, checkpoint, other=True)
        changes = PLANS["native", quick].changes
        return measure_replicas(stock, folder, turns(stock.versions, changes))


def _run(engine: str, quick: bool, snapshot: Path | None, checkpoint: Path | None) -> list[Row]:
    plan = PLANS[engine, quick]
    with tempfile.TemporaryDirectory(prefix="onesearch-swaps-") as name:
        folder = Path(name)
        if snapshot is None or checkpoint is None:
            snapshot, checkpoint = demo_pair(folder)
        # Another shop's decoder has another vocabulary, and vLLM's weights are replaced in place.
        stock = make_stock(folder, snapshot, checkpoint, other=engine == "native")
        settings = {
            "ONESEARCH_REGISTRY": str(stock.path),
            "ONESEARCH_ENGINE": engine,
            "ONESEARCH_KEYWORDS": "off",
            # What searches leave in Redis grows with the searches, up to a bound of its own.
            "ONESEARCH_EVENTS": "false",
        }
        with running([], folder, settings) as (port, process):
            queries = queries_of(snapshot)[: plan.queries]
            before, record, rate = in_loop(_measure(port, process, stock, queries, plan))
    return table_of(engine, rate, record, before)


async def _measure(
    port: int, process: int, stock: Stock, queries: Sequence[str], plan: Plan
) -> tuple[Record, Record, float]:
    """What was seen before, what is counted, and the rate of requests."""
    random = np.random.default_rng(3)
    requests = {
        query: post("/v1/search", orjson.dumps({"query": query, "limit": LIMIT}))
        for query in queries
    }
    every, judge = list(requests.values()), Judge(stock)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=ADMIN_TIMEOUT_S
    ) as client:
        for version in [*stock.versions[1:], stock.first]:
            await _post(client, f"/admin/generations/{version}:promote")
            for query in queries:
                answer = await _post(client, "/v1/search", {"query": query, "limit": LIMIT})
                if answer["degraded"]:
                    raise OnesearchError(f"a calm server degrades: {answer['degraded']}")
                judge.learn(answer)
        _check_different(judge, queries)
        await offer(port, every, rate=plan.first, seconds=WARM_UP_S, random=random)

        async def at(rate: float, seconds: float) -> Tally:
            await asyncio.sleep(PAUSE_S)
            return await offer(port, every, rate=rate, seconds=seconds, random=random)

        rate = LOAD * await lasting_rate(
            at, plan.search, REFUSED_SHARE, plan.bound_s, plan.first, plan.less
        )
        changes = turns(stock.versions, plan.before + plan.changes)

        async def under_load(part: Turns, champion: str, seconds: float) -> Record:
            record = Record()
            seen = _watcher(record, judge)
            async with asyncio.TaskGroup() as group:
                group.create_task(_swap(client, process, part, champion, seconds, record))
                group.create_task(
                    offer(port, every, rate=rate, seconds=seconds, random=random, seen=seen)
                )
            return record

        before = await under_load(changes[: plan.before], stock.first, plan.before_s)
        champion = changes[plan.before - 1][1]
        record = await under_load(changes[plan.before :], champion, plan.seconds)
    return before, record, rate


def _watcher(record: Record, judge: Judge) -> Callable[[Ended], None]:
    def seen(ended: Ended) -> None:
        record.outcomes[ended.outcome] += 1
        if ended.outcome not in ENDED_WELL or ended.latency is None:
            record.failed.append(ended.due)
            return
        record.latencies.append((ended.due, ended.latency))
        answer = orjson.loads(ended.answer[ended.answer.index(b"\r\n\r\n") + 4 :])
        record.answered_by[answer["model_version"]] += 1
        fault = judge.fault(answer)
        if fault is not None:
            record.faults.append(fault)

    return seen


def _check_different(judge: Judge, queries: Sequence[str]) -> None:
    """Raises OnesearchError where a mixture could not be told from an answer of one generation."""
    answers = list(judge.calm.values())
    for query in queries:
        found = [tuple(hit["item_id"] for hit in one[query]) for one in answers]
        if len(set(found)) > 1:
            return
    raise OnesearchError("all generations answer all queries alike")


async def _swap(
    client: httpx.AsyncClient,
    process: int,
    changes: Turns,
    champion: str,
    seconds: float,
    record: Record,
) -> None:
    """Change the champion at even distances, the first after half of one."""
    started, every = time.perf_counter(), seconds / len(changes)
    for number, (rolls_back, target) in enumerate(changes):
        due = started + every * (number + 0.5)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        facts = await _get(client, "/admin/generations")
        in_memory = {one["version"] for one in facts["loaded"]}
        memory_mb = _memory_mb(process)
        change = f"{champion}:rollback" if rolls_back else f"{target}:promote"
        path = f"/admin/generations/{change}"
        begun = time.perf_counter()
        facts = await _post(client, path)
        ended = time.perf_counter()
        if facts["live"]["version"] != target:
            raise OnesearchError(f"{path} was taken, but {facts['live']['version']} is live")
        record.swaps.append(
            Swap(
                "rollback" if rolls_back else "promotion",
                begun,
                ended,
                target not in in_memory,
                dict(facts.get("last_change_ms") or {}),
                memory_mb,
            )
        )
        champion = target


def turns(versions: Sequence[str], changes: int) -> list[tuple[bool, str]]:
    """Whether a change is a rollback, and whom it makes champion. The first version is champion,
    the last was it before. Each promotion is the one of those possible that was made least."""
    champion, previous = versions[0], versions[-1]
    made = Counter[tuple[str, str]]()
    found: list[tuple[bool, str]] = []
    for number in range(changes):
        rolls_back = number % ROUND == ROUND - 1
        others = [version for version in versions if version != champion]
        target = previous if rolls_back else min(others, key=lambda one: made[champion, one])
        made[champion, target] += 1
        found.append((rolls_back, target))
        champion, previous = target, champion
    return found


async def _post(client: httpx.AsyncClient, path: str, body: Any = None) -> dict[str, Any]:
    return _checked(await client.post(path, json={} if body is None else body))


async def _get(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    return _checked(await client.get(path))


def _checked(answer: httpx.Response) -> dict[str, Any]:
    if answer.status_code != 200:
        raise OnesearchError(f"{answer.url.path}: {answer.status_code}: {answer.text}")
    return answer.json()


def _memory_mb(process: int) -> float:
    """Resident memory of a process and its descendants, what they share counted once."""
    total, waiting = 0.0, [process]
    while waiting:
        one = waiting.pop()
        folder = Path(f"/proc/{one}")
        try:
            for line in (folder / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) / 1024
            for task in (folder / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total
