"""Simulated users that visit a running server: they search over HTTP and post what they click.

Everything goes the way of real users: exposures are written by the gateway, events are posted to
it, arms are the gateway's. Only the people are made up, and every id of theirs says so.

    P(click | user, item at position i) = i^-ETA · σ(a_grade + taste of the user) · (1 + lift)
    P(order | click) = σ(o + o_grade · grade + taste)

with the position-based model and the constants of the demo shop (`index.importers.demo_behaviour`);
grades come from the dataset's judgments, an item without one has the lowest. `lift` is planted in
every arm but the control, so that a report can be checked against it. Queries are drawn by how
often the dataset's events have them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from index.dataset import Dataset
from index.errors import DataError, OnesearchError
from index.importers.demo_behaviour import CLICK_BIAS, ETA, ORDER_BIAS, ORDER_PER_GRADE
from server.experiment.records import CLICK, ONLY_ARM, ORDER, SIMULATED_USER

TOP_GRADE = len(CLICK_BIAS) - 1
TASTE_DEVIATION = 0.5
ATTEMPTS = 5
MAX_WAIT_S = 10.0
TIMEOUT_S = 30.0
BUSY_STATUS = 503


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Queries with their weights (Q,), and the grade 0 … TOP_GRADE of judged items of each."""

    queries: Sequence[str]
    weights: Sequence[float]
    grades: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, dataset: Dataset) -> Demand:
        """The judged queries of a dataset. Raises DataError without judgments."""
        rows: list[dict[str, Any]] = dataset.judgments.to_pylist()
        if not rows:
            raise DataError("has no judgments, so nobody knows what is clicked", path=dataset.path)
        grades: dict[str, dict[str, int]] = {}
        values = [float(row["grade"]) for row in rows]
        low, spread = min(values), max(max(values) - min(values), 1e-9)
        for row, value in zip(rows, values, strict=True):
            scaled = round(TOP_GRADE * (value - low) / spread)
            grades.setdefault(row["query"], {})[row["item_id"]] = scaled
        asked = Counter(dataset.events.column("query").to_pylist())
        queries = sorted(grades)
        return cls(queries, [1.0 + asked[query] for query in queries], grades)


@dataclass(frozen=True, slots=True)
class Visits:
    """How many simulated users visit. `searches`: mean of each, at least 1."""

    users: int = 500
    searches: float = 3.0
    lift: float = 0.0
    at_once: int = 8
    limit: int = 10
    seed: int = 7


@dataclass(slots=True)
class Visited:
    """What happened; all of it simulated."""

    searches: int = 0
    clicks: int = 0
    orders: int = 0
    arms: Counter[str] = field(default_factory=Counter[str])


class ServerRefuses(OnesearchError):
    """The server cannot be reached or does not do what a visit needs."""


async def visit(
    url: str, demand: Demand, visits: Visits, show: Callable[[int], None] = lambda _: None
) -> Visited:
    """Let simulated users search and click at `url`. `show` hears how many have left again.

    Raises ServerRefuses.
    """
    done = Visited()
    weights = np.asarray(demand.weights)
    chances = weights / weights.sum()
    numbers = iter(range(visits.users))
    left = 0

    async def visitors() -> None:
        nonlocal left
        for number in numbers:
            random = np.random.default_rng([visits.seed, number])
            await _visit_as(number, http, demand, chances, visits, random, done)
            left += 1
            show(left)

    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(visits.at_once, visits.users)):
                    group.create_task(visitors())
        except* ServerRefuses as refusals:
            raise refusals.exceptions[0] from None
    return done


async def _visit_as(
    number: int,
    http: httpx.AsyncClient,
    demand: Demand,
    chances: np.ndarray[Any, np.dtype[np.float64]],
    visits: Visits,
    random: np.random.Generator,
    done: Visited,
) -> None:
    user_id = f"{SIMULATED_USER}{visits.seed}-{number}"
    taste = float(random.normal(0, TASTE_DEVIATION))
    for _ in range(1 + int(random.poisson(visits.searches - 1))):
        query = demand.queries[int(random.choice(len(chances), p=chances))]
        wanted = {"query": query, "user_id": user_id, "limit": visits.limit}
        answer = await _post(http, "/v1/search", wanted)
        arm = answer.get("arm") or ONLY_ARM
        lift = visits.lift if arm != ONLY_ARM else 0.0
        events = _behave(answer, demand.grades[query], taste, lift, random)
        for event in events:
            event |= {"user_id": user_id, "request_id": answer["request_id"], "simulated": True}
        if events:
            await _post(http, "/v1/events", {"events": events})
        done.searches += 1
        done.arms[arm] += 1
        done.clicks += sum(event["kind"] == CLICK for event in events)
        done.orders += sum(event["kind"] == ORDER for event in events)


def _behave(
    answer: Mapping[str, Any],
    grades: Mapping[str, int],
    taste: float,
    lift: float,
    random: np.random.Generator,
) -> list[dict[str, Any]]:
    """Clicks and orders of one answer, as events without user and search."""
    events: list[dict[str, Any]] = []
    now = time.time()
    for position, hit in enumerate(answer["hits"], 1):
        grade = grades.get(hit["item_id"], 0)
        attraction = _sigmoid(float(CLICK_BIAS[grade]) + taste) * (1 + lift)
        # Two draws for each item whatever happens: a lift leaves the other draws as they are.
        clicks, orders = random.random(2)
        if clicks >= position**-ETA * attraction:
            continue
        done = {"item_id": hit["item_id"], "position": position, "time": now + position}
        events.append(done | {"kind": CLICK})
        if orders < _sigmoid(ORDER_BIAS + ORDER_PER_GRADE * grade + taste):
            events.append(done | {"kind": ORDER})
    return events


async def _post(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer; busy servers are asked again after the time that they name."""
    told = ""
    for attempt in range(ATTEMPTS):
        try:
            response = await http.post(path, json=body)
        except httpx.HTTPError as error:
            raise ServerRefuses(f"{http.base_url} cannot be reached: {error}") from None
        if response.is_success:
            return response.json()
        told = f"{response.status_code} {_detail(response)}"
        if response.status_code != BUSY_STATUS:
            break
        wait_s = float(response.headers.get("Retry-After", 2**attempt))
        await asyncio.sleep(min(wait_s, MAX_WAIT_S))
    raise ServerRefuses(f"{http.base_url} refuses {path}: {told}")


def _detail(response: httpx.Response) -> str:
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        return str(response.json()["detail"])
    return "without a reason"


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
