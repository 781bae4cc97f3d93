"""The process that sends the load: `python -m loadtest.shoppers PLAN RECORDS`.

Locust's user with a pace of its own. Requests leave at instants that are drawn beforehand (Poisson
for searches and look-ups, even for changes and swaps), whether earlier ones were answered or not,
and latency counts from the instant at which a request was due: what a server keeps waiting is
charged to it, and there is no coordinated omission.

RECORDS gets one JSON array a line, [phase, kind, due, latency, outcome, late], times in seconds of
the monotonic clock, `latency` null where there was no answer; and one object for each phase, the
knee and each swap. Standard output gets the same objects, for whoever watches.
"""

from __future__ import annotations

# Locust patches sockets and sleeping when it is imported, before anything else may use them.
from locust import FastHttpUser, task  # isort: skip
from locust.env import Environment  # isort: skip
from locust.exception import StopUser  # isort: skip

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, TextIO, cast

import gevent
import numpy as np
import orjson
from gevent.pool import Group

from index.errors import ConfigError
from loadtest.knee import find_knee
from loadtest.outcomes import LOST, UNANSWERED, WHOLE, outcome_of
from loadtest.plan import Phase, Plan
from loadtest.workload import Request, Workload

CONNECTIONS = 512
ANSWER_S = 10.0
ADMIN_S = 120.0
PATIENCE_S = 5.0
"""How long after a phase's end its last answers are waited for."""
DRAWN = 20_000
"""Searches that are drawn before the start; then they come again."""
THINK_S = 0.2
"""From an answer to the click on it."""
SETTLE_S = 1.0
"""Between the steps of the knee's search, so that one step's crowd is gone before the next."""


class Shoppers(FastHttpUser):
    """All shoppers of a run: one locust user whose one task is the plan."""

    concurrency = CONNECTIONS
    connection_timeout = ANSWER_S
    network_timeout = ANSWER_S
    max_retries = 0
    plan: Plan
    records: TextIO

    def on_start(self) -> None:
        """Draw everything that will be asked."""
        random = np.random.default_rng(self.plan.seed)
        shop = (
            Workload.of_log(Path(self.plan.queries))
            if self.plan.queries
            else Workload.of_dataset(Path(self.plan.dataset))
        )
        beam, drawn = self.plan.beam_width, DRAWN
        n_cold = int(sum(2 * (one.rate or 0) * one.seconds for one in self.plan.phases if one.cold))
        self._random = random
        self._cold = cycle(shop.first_searches(n_cold + 1, beam, random))
        self._warm = cycle(shop.searches(drawn, beam, random))
        self._look_ups = cycle(shop.look_ups(drawn // 10, random))
        self._changes = cycle(shop.changes(1000, random))
        self._has_items = bool(shop.items)
        self._versions = cycle(self.plan.versions[1:] + self.plan.versions[:1])
        self._knee = 0.0
        self._pending = Group()
        # What was drawn stays; looking at it again and again would delay what is due.
        gc.collect()
        gc.freeze()

    @task
    def follow_plan(self) -> None:
        """Every phase in turn, then the end."""
        for phase in self.plan.phases:
            rate = self._knee * phase.share if phase.rate is None else phase.rate
            if rate:
                self._run(phase, rate)
            if self.plan.knee is not None and phase.name == self.plan.knee_after:
                self._search_knee()
        raise StopUser

    def _search_knee(self) -> None:
        search = self.plan.knee
        assert search is not None

        def carried(rate: float, seconds: float) -> float:
            gevent.sleep(SETTLE_S)
            outcomes = self._run(Phase(f"step {rate:.0f}/s", seconds), rate)
            good = sum(
                outcome == WHOLE and latency <= search.bound_s for outcome, latency in outcomes
            )
            return good / len(outcomes) if outcomes else 1.0

        self._knee, steps = find_knee(carried, search)
        self._tell({"knee": self._knee, "steps": [step._asdict() for step in steps]})
        gevent.sleep(SETTLE_S)

    def _run(self, phase: Phase, rate: float) -> list[tuple[str, float]]:
        """One phase; outcome and seconds of its searches."""
        began = time.monotonic()
        found: list[tuple[str, float]] = []
        end = began + phase.seconds
        searches = self._cold if phase.cold else self._warm

        def search(request: Request, due: float) -> None:
            outcome, answer = self._send(phase.name, request, due)
            found.append((outcome, time.monotonic() - due))
            if phase.clicks and outcome == WHOLE and self._random.random() < phase.clicks:
                gevent.sleep(THINK_S)
                click = _click(answer)
                if click is not None:
                    self._send(phase.name, click, time.monotonic())

        def send(request: Request, due: float) -> None:
            self._send(phase.name, request, due)

        # A log of queries names no items.
        look_ups = rate * phase.look_ups if self._has_items else 0.0
        streams = [
            gevent.spawn(self._stream, searches, self._poisson(rate, began, end), search),
            gevent.spawn(self._stream, self._look_ups, self._poisson(look_ups, began, end), send),
            gevent.spawn(self._stream, self._changes, _even(phase.changes_per_s, began, end), send),
        ]
        if phase.swap_every_s and self.plan.versions:
            swaps = _even(1 / phase.swap_every_s, began, end)
            streams.append(gevent.spawn(self._stream, self._promotions(), swaps, self._swap))
        gevent.joinall(streams, raise_error=True)
        self._pending.join(timeout=PATIENCE_S + max(0.0, end - time.monotonic()))
        left = len(self._pending)
        self._pending.kill()
        for _ in range(left):
            found.append((UNANSWERED, PATIENCE_S))
        self._tell(
            {
                "phase": phase.name,
                "rate": rate,
                "began": began,
                "ended": end,
                "unanswered": left,
            }
        )
        return found

    def _stream(
        self, requests: Iterator[Request], dues: Iterable[float], work: Callable[..., None]
    ) -> None:
        """Start `work` at each instant."""
        for due in dues:
            wait = due - time.monotonic()
            if wait > 0:
                gevent.sleep(wait)
            self._pending.start(gevent.Greenlet(work, next(requests), due))

    def _poisson(self, rate: float, began: float, end: float) -> list[float]:
        if not rate:
            return []
        count = int((end - began) * rate * 1.5) + 100
        dues = began + np.cumsum(self._random.exponential(1 / rate, count))
        return dues[dues < end].tolist()

    def _promotions(self) -> Iterator[Request]:
        body = orjson.dumps({"who": "loadtest", "why": "swap under load"})
        for version in self._versions:
            yield Request("swap", "POST", f"/admin/generations/{version}:promote", body)

    def _swap(self, request: Request, due: float) -> None:
        outcome, _ = self._send("swaps", request, due, timeout_s=ADMIN_S)
        self._tell({"swap": request.path, "began": due, "ended": time.monotonic(), "is": outcome})

    def _send(
        self, phase: str, request: Request, due: float, timeout_s: float = ANSWER_S
    ) -> tuple[str, bytes]:
        """Send and record; the outcome and the answer's body."""
        late = time.monotonic() - due
        headers = {"Accept-Encoding": "identity"}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        with (
            gevent.Timeout(timeout_s, cast(Any, False)),
            self.client.request(
                request.method,
                request.path,
                name=request.kind,
                data=cast(Any, request.body),
                headers=headers,
                catch_response=True,
            ) as response,
        ):
            content = response.content or b""
            latency = time.monotonic() - due
            outcome = outcome_of(response.status_code, content, request.kind)
            # Locust's own statistics count from when it was due, too.
            response.request_meta["response_time"] = latency * 1000
            if outcome == WHOLE:
                response.success()
            else:
                response.failure(outcome)
            self._record(
                phase, request.kind, due, None if outcome == LOST else latency, outcome, late
            )
            return outcome, content
        self._record(phase, request.kind, due, None, UNANSWERED, late)
        return UNANSWERED, b""

    def _record(self, *facts: Any) -> None:
        self.records.write(orjson.dumps(facts).decode() + "\n")

    def _tell(self, facts: dict[str, Any]) -> None:
        line = orjson.dumps(facts).decode() + "\n"
        self.records.write(line)
        self.records.flush()
        sys.stdout.write(line)
        sys.stdout.flush()


def _even(rate: float, began: float, end: float) -> list[float]:
    """The first after half a gap."""
    if not rate:
        return []
    return (began + (np.arange(int((end - began) * rate)) + 0.5) / rate).tolist()


def _click(answer: bytes) -> Request | None:
    """A click on the first hit."""
    found = orjson.loads(answer)
    if not found["hits"]:
        return None
    event = {
        "kind": "click",
        "request_id": found["request_id"],
        "item_id": found["hits"][0]["item_id"],
        "position": 1,
        "time": time.time(),
        "simulated": True,
    }
    return Request("event", "POST", "/v1/events", orjson.dumps({"events": [event]}))


def main(arguments: list[str]) -> None:
    """Raises ConfigError for anything but PLAN RECORDS."""
    if len(arguments) != 2:
        raise ConfigError("give the plan and the file for the records")
    plan = Plan.read(Path(arguments[0]))
    with Path(arguments[1]).open("w", encoding="utf-8") as records:
        Shoppers.plan, Shoppers.records, Shoppers.host = plan, records, plan.url
        environment = Environment(user_classes=[Shoppers])
        runner = environment.create_local_runner()
        runner.start(1, spawn_rate=1)
        runner.greenlet.join(timeout=0)
        while runner.user_count or runner.state == "spawning":
            gevent.sleep(0.1)
        runner.quit()
        if runner.exceptions:
            first = next(iter(runner.exceptions.values()))
            raise SystemExit(f"error: {first['msg']}\n{first['traceback']}")


if __name__ == "__main__":
    main(sys.argv[1:])
