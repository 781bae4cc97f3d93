"""Generations swapped and rolled back while searches go on at 80 % of the sustainable load.

A server follows a registry of three generations (`loadtest.bench.swap_stock`). First each is live
for a moment, and its answers to all queries are kept. Then the load starts, and the admin API
promotes and rolls back, in turns that visit every pair: other weights, another snapshot, and back.
Every answer is checked against the generation that it names.

Tables: `native`, ten minutes with 20 promotions and 5 rollbacks; `vllm`, 5 swaps of the weights in
an engine that holds one set of them (only where vLLM is installed). Rows:

latency   p99 of the answers that were due from the beginning of a swap until SETTLED_S after its
          end, beside p99 of all others
answers   how many were refused, lost, degraded, or not of one generation
swaps     disk to live: milliseconds of promotions of what was not in memory, and in its parts; what
          was still in memory beside it
memory    growth of the server and its children, megabytes a swap, by least squares over the swaps
          after the first round
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import orjson

from index.errors import OnesearchError
from loadtest.bench.load import Ended, Tally, offer, post
from loadtest.bench.overload import (
    QUICK,
    WARM_UP_RATE,
    WARM_UP_S,
    demo_pair,
    in_loop,
    queries_of,
    running,
    sustainable_rate,
)
from loadtest.bench.overload import Plan as SearchPlan
from loadtest.bench.report import Row, row
from loadtest.bench.swap_stock import Judge, Stock, make_stock

LOAD = 0.8
QUERIES = 60
LIMIT = 10
SETTLED_S = 1.0
ROUND = 5
"""Four promotions, then a rollback."""
ADMIN_TIMEOUT_S = 120.0
VLLM_START_SETTINGS = {"ONESEARCH_ENGINE": "vllm"}
ENDED_WELL = frozenset({"200", "degraded"})
SHOWN_FAULTS = 3


class Plan(NamedTuple):
    """How long, and how many changes of the champion, rollbacks included."""

    seconds: float
    changes: int
    search: SearchPlan


PLANS = {
    ("native", False): Plan(600.0, 25, QUICK),
    ("native", True): Plan(40.0, 5, QUICK),
    ("vllm", False): Plan(120.0, 5, QUICK),
    ("vllm", True): Plan(60.0, 5, QUICK),
}


@dataclass(frozen=True, slots=True)
class Swap:
    """One change of the champion. Instants are `time.perf_counter` seconds; `from_disk`: it was not
    in memory; `parts`: milliseconds as the server told them; `memory_mb`: before it."""

    kind: str
    begun: float
    ended: float
    from_disk: bool
    parts: dict[str, float]
    memory_mb: float


@dataclass(slots=True)
class Record:
    """What was seen of a run."""

    swaps: list[Swap] = field(default_factory=list[Swap])
    latencies: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """Due instant and seconds of every answer."""
    outcomes: Counter[str] = field(default_factory=Counter[str])
    failed: list[float] = field(default_factory=list[float])
    """Due instants of what was refused or lost."""
    faults: list[str] = field(default_factory=list[str])
    answered_by: Counter[str] = field(default_factory=Counter[str])

    def during(self) -> tuple[list[float], list[float]]:
        """Latencies of answers that were due during a swap, and of the others."""
        inside: list[float] = []
        outside: list[float] = []
        for due, latency in self.latencies:
            (inside if self._is_near(due) else outside).append(latency)
        return inside, outside

    def failed_during(self) -> int:
        """Refused or lost, and due during a swap."""
        return sum(map(self._is_near, self.failed))

    def _is_near(self, due: float) -> bool:
        return any(one.begun <= due <= one.ended + SETTLED_S for one in self.swaps)


def rows(
    quick: bool = False, *, snapshot: Path | None = None, checkpoint: Path | None = None
) -> list[Row]:
    """The native engine, and vLLM where it is installed; without a pair, a small simulated shop."""
    found = _run("native", quick, snapshot, checkpoint)
    if find_spec("vllm") is not None:
        found += _run("vllm", quick, snapshot, checkpoint)
    return found


def native(quick: bool = False) -> list[Row]:
    """20 promotions and 5 rollbacks in ten minutes."""
    return _run("native", quick, None, None)


def vllm(quick: bool = False) -> list[Row]:
    """5 swaps. Raises OnesearchError where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise OnesearchError(
            "vLLM is not installed here; make vllm-env, then run .venv-vllm/bin/onesearch"
        )
    return _run("vllm", quick, None, None)


TABLES = {"native": native, "vllm": vllm}


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
            queries = queries_of(snapshot)[:QUERIES]
            record, rate = in_loop(_measure(port, process, stock, queries, plan))
    return _rows(engine, plan, rate, record)


async def _measure(
    port: int, process: int, stock: Stock, queries: Sequence[str], plan: Plan
) -> tuple[Record, float]:
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
        await offer(port, every, rate=WARM_UP_RATE, seconds=WARM_UP_S, random=random)

        async def at(rate: float, seconds: float) -> Tally:
            return await offer(port, every, rate=rate, seconds=seconds, random=random)

        rate = LOAD * await sustainable_rate(at, plan.search)
        record = Record()
        seen = _watcher(record, judge)
        async with asyncio.TaskGroup() as group:
            group.create_task(_swap(client, process, stock, plan, record))
            group.create_task(
                offer(port, every, rate=rate, seconds=plan.seconds, random=random, seen=seen)
            )
    return record, rate


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
    client: httpx.AsyncClient, process: int, stock: Stock, plan: Plan, record: Record
) -> None:
    """Change the champion at even distances, the first after half of one."""
    started, every = time.perf_counter(), plan.seconds / plan.changes
    champion, previous = stock.first, stock.versions[-1]
    for number in range(plan.changes):
        due = started + every * (number + 0.5)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        facts = await _get(client, "/admin/generations")
        in_memory = {one["version"] for one in facts["loaded"]}
        memory_mb = _memory_mb(process)
        rolls_back = number % ROUND == ROUND - 1
        if rolls_back:
            target, path = previous, f"/admin/generations/{champion}:rollback"
        else:
            target = _next(stock.versions, champion, number)
            path = f"/admin/generations/{target}:promote"
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
        champion, previous = target, champion


def _next(versions: Sequence[str], champion: str, number: int) -> str:
    """The next of the others, each in its turn."""
    others = [version for version in versions if version != champion]
    return others[number % len(others)]


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


def _rows(engine: str, plan: Plan, rate: float, record: Record) -> list[Row]:
    setting = {"engine": engine, "requests/s": round(rate), "swaps": len(record.swaps)}
    inside, outside = record.during()
    total, ended_well = record.outcomes.total(), sum(map(record.outcomes.get, ENDED_WELL, [0, 0]))
    table = [
        row(
            "p99 of answers during swaps",
            setting,
            _p99_ms(inside),
            {"outside of swaps": _p99_ms(outside)},
            "ms",
            p50_ms=[_quantile_ms(inside, 0.5), _quantile_ms(outside, 0.5)],
            slowest_ms=[_quantile_ms(inside, 1.0), _quantile_ms(outside, 1.0)],
            samples=[len(inside), len(outside)],
        ),
        row(
            "answers refused or lost",
            setting,
            float(total - ended_well),
            {},
            "of all",
            offered=total,
            outcomes=dict(record.outcomes),
            during_swaps=record.failed_during(),
        ),
        row(
            "answers of mixed generations",
            setting,
            float(len(record.faults)),
            {},
            "of all",
            checked=len(record.latencies),
            by_model=dict(record.answered_by),
            faults=record.faults[:SHOWN_FAULTS],
        ),
    ]
    for from_disk, what in ((True, "disk to live"), (False, "in memory to live")):
        chosen = [one for one in record.swaps if one.from_disk == from_disk]
        if chosen:
            table.append(
                row(
                    what,
                    setting | {"swaps": len(chosen)},
                    [(one.ended - one.begun) * 1000 for one in chosen],
                    {},
                    "ms",
                    parts_ms=_median_parts(chosen),
                    slowest_ms=_rounded(max(one.ended - one.begun for one in chosen) * 1000),
                )
            )
    settled = [one.memory_mb for one in record.swaps[ROUND:]] or [0.0]
    slope, half = _slope(settled)
    table.append(
        row(
            "growth of memory",
            setting,
            slope,
            {},
            "MB/swap",
            ci95=[_rounded(slope - half), _rounded(slope + half)],
            memory_mb=[round(one.memory_mb) for one in record.swaps],
        )
    )
    return table


def _median_parts(swaps: Sequence[Swap]) -> dict[str, float]:
    names = list(dict.fromkeys(name for one in swaps for name in one.parts))
    return {
        name: _rounded(float(np.median([one.parts[name] for one in swaps if name in one.parts])))
        for name in names
    }


def _p99_ms(seconds: Sequence[float]) -> float:
    return _quantile_ms(seconds, 0.99)


def _quantile_ms(seconds: Sequence[float], share: float) -> float:
    return _rounded(float(np.quantile(seconds, share)) * 1000) if seconds else math.nan


def _slope(values: Sequence[float]) -> tuple[float, float]:
    """Least squares over 0, 1, 2 …; the slope and half of its 95 % interval (normal errors)."""
    count = len(values)
    if count < 3:
        return 0.0, math.inf
    place = np.arange(count) - (count - 1) / 2
    spread = float((place**2).sum())
    centred = np.asarray(values) - np.mean(values)
    slope = float((place * centred).sum()) / spread
    error = math.sqrt(float(((centred - slope * place) ** 2).sum()) / (count - 2) / spread)
    return slope, 1.96 * error


def _rounded(value: float) -> float:
    return float(f"{value:.4g}") if math.isfinite(value) else value
