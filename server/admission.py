"""How many requests are let in, and what becomes of the others.

By Little's law, with N searches inside and one answered every s seconds, each takes N · s. The
limit holds that at `patience` times what a search takes that is alone:

    N = max(patience · alone_s, SOON_S) / s · ease

All are measured all the time: `alone_s` is the median of recent searches that shared their whole
stay with nobody, s the busy time per whole answer. A server that answers many at once (a GPU) has a
small s and lets many in; one that works them off in turn lets in `patience`. `ease` falls with each
answer that the crowd made late (degraded, or none, although its deadline was far enough for one
that is alone) and rises with each whole one, so that short deadlines are met by letting in fewer.
Whoever comes when the house is full is refused before the body is parsed: those inside were there
first, and are answered in time. At least `MIN_LIMIT` are always let in, so that what is measured
wrongly is measured again, and `FIRST_LIMIT` while little is known.

A crowd that soon goes is no overload: chance makes one now and then at any load, and so does what
takes the processors for a moment, such as another generation that is being loaded. So up to `CROWD`
times N are let in, at the expense of an account that holds `CROWD_S` of searches' time and fills up
within `CROWD_REST_S`: under a lasting load it is soon empty, and N holds. So it does where answers
come late, and in a *rush*, in which the account does not fill up either: when more come than could
ever be answered. Arrivals alone tell that, whatever the processors do meanwhile: Page's cumulative
sum (1954) of the likelihood of `RUSH` in the time of one answer, rather than one.

Refusals are paced: above `REFUSALS_PER_S` they wait, each `MAX_HOLD_S` at most, which costs a
timer. Clients that come back at once would otherwise keep the event loop busy with refusing.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Problem, refuse
from server.metrics import Metrics
from server.schemas import Degradation

GUARDED_PREFIX = "/v1/"
SEARCH_PREFIX = "/v1/search"
MIN_LIMIT = 4
FIRST_LIMIT = 16
"""Until a search was alone; and never less before `ENOUGH_ANSWERS`."""
ENOUGH_ANSWERS = 16
"""With fewer, the busy time of those still inside would count for more than what was answered."""
SOON_S = 0.045
"""Nobody is refused who would be answered that soon."""
EASE_DOWN, EASE_UP = 0.9, 1.01
"""Per late and per whole answer: about one in ten may be late."""
ROOMY = 2.0
"""A deadline of so many times `alone_s` could be met by a search that is alone."""
CROWD = 2
CROWD_S, CROWD_REST_S = 1.0, 10.0
RUSH = 1.5
"""Arrivals in the time of one answer."""
RUSH_AT = 16.0
"""Arrivals beyond those that tell neither."""
MEMORY_ANSWERS, MEMORY_USUAL = 64, 2048
MEMORY_ALONE = 31
REFUSALS_PER_S = 400
MAX_HOLD_S = 0.25
OK_STATUS, LATE_STATUS = 200, 504
LATE: frozenset[Degradation] = frozenset({"engine_deadline", "engine_overload"})
BESIDE: frozenset[Degradation] = frozenset({"keywords_unavailable"})
"""Says nothing of how long a search takes."""


@dataclass(slots=True, eq=False)
class Visit:
    """One search's stay: since when, and whether it was the only one so far."""

    entered: float
    alone: bool


class AnswerTime:
    """Seconds that the server is busy for each whole answer, of about the last `memory` leaves."""

    def __init__(self, memory: int) -> None:
        self._keep = 1 - 1 / memory
        self._busy_s = 0.0
        self._answers = 0.0

    def busy(self, seconds: float) -> None:
        self._busy_s += seconds

    def left(self, answered: bool) -> None:
        self._answers = (self._answers + answered) * self._keep
        self._busy_s *= self._keep

    @property
    def seconds(self) -> float:
        """0 while nothing was answered."""
        return self._busy_s / self._answers if self._answers else 0.0


class Rush:
    """Whether more come than could be answered: a cumulative sum over arrivals."""

    _FALLS = (RUSH - 1) / math.log(RUSH)
    """Per answer's time; each arrival adds one. Poisson arrivals of 1 and of RUSH in that time are
    equally likely at this pace."""

    def __init__(self, now: float) -> None:
        self._sum = 0.0
        self._last = now

    def arrived(self, now: float, answer_s: float) -> None:
        """One more is there; `answer_s`: seconds that an answer takes of the server, usually."""
        fallen = self._FALLS * (now - self._last) / answer_s if answer_s else self._sum
        self._sum = min(max(0.0, self._sum - fallen) + 1, 2 * RUSH_AT)
        self._last = now

    @property
    def on(self) -> bool:
        return self._sum > RUSH_AT


class SearchLimit:
    """The limit N of searches inside. Used on one event loop."""

    def __init__(
        self, most: int, patience: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.inside = 0
        self._most = most
        self._patience = patience
        self._clock = clock
        self._lone: Visit | None = None
        self._alone_s: deque[float] = deque(maxlen=MEMORY_ALONE)
        self._typical_s = 0.0
        self._last = 0.0
        self._each, self._usually_each = AnswerTime(MEMORY_ANSWERS), AnswerTime(MEMORY_USUAL)
        self._taught = 0
        self._ease = 1.0
        self._spare_s, self._spared = CROWD_S, clock()
        self._rush = Rush(clock())

    @property
    def limit(self) -> int:
        """How many searches may be inside."""
        each_s = self._each.seconds
        if not self._typical_s or not each_s:
            return min(FIRST_LIMIT, self._most)
        least = MIN_LIMIT if self._taught >= ENOUGH_ANSWERS else FIRST_LIMIT
        allowed = self._target_s / each_s * self._ease
        return min(max(least, round(allowed)), self._most)

    def enter(self) -> Visit | None:
        """A place inside, or None when there is none."""
        self._rush.arrived(self._clock(), self._usual_s)
        if self.inside >= self.limit and not self._may_crowd():
            return None
        visit = Visit(self._advance(), alone=not self.inside)
        if self._lone is not None:
            self._lone.alone = False
        self._lone = visit if visit.alone else None
        self.inside += 1
        return visit

    def leave(
        self, visit: Visit, *, answered: bool, late: bool = False, allowed_s: float = 0.0
    ) -> None:
        """Give the place back. `answered`: wholly; only that teaches what a search takes. `late`:
        it was not, because of its deadline, which allowed `allowed_s` seconds."""
        now = self._advance()
        self.inside -= 1
        if self._lone is visit:
            self._lone = None
        self._each.left(answered)
        self._usually_each.left(answered)
        self._taught += answered or late
        if answered:
            self._ease = min(1.0, self._ease * EASE_UP)
        elif late and allowed_s >= ROOMY * self._typical_s:
            self._ease *= EASE_DOWN
        if answered and visit.alone:
            self._alone_s.append(now - visit.entered)
            self._typical_s = median(self._alone_s)

    @property
    def _target_s(self) -> float:
        """What a search may take."""
        return max(self._patience * self._typical_s, SOON_S)

    @property
    def _usual_s(self) -> float:
        """What an answer takes where this is not a slow moment."""
        return min(self._usually_each.seconds, self._each.seconds)

    def _may_crowd(self) -> bool:
        """Whether one more may come though the limit is reached; it is charged for that."""
        now = self._clock()
        earned_s = 0.0 if self._rush.on else (now - self._spared) * CROWD_S / CROWD_REST_S
        self._spare_s, self._spared = min(CROWD_S, self._spare_s + earned_s), now
        each_s = self._each.seconds
        if self._taught < ENOUGH_ANSWERS or not each_s or self._ease < 1 or self._rush.on:
            return False
        # As many as usually: where nothing is answered for a moment, N has fallen.
        most = min(round(CROWD * self._target_s / self._usual_s), self._most)
        if self.inside >= most or each_s > self._spare_s:
            return False
        self._spare_s -= each_s
        return True

    def _advance(self) -> float:
        now = self._clock()
        if self.inside:
            self._each.busy(now - self._last)
            self._usually_each.busy(now - self._last)
        self._last = now
        return now


class Pace:
    """Gives each refusal a time to leave, so that no more than `REFUSALS_PER_S` do."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0

    def hold(self) -> float:
        """Seconds that one more refusal waits."""
        now = self._clock()
        self._next = min(max(self._next, now), now + MAX_HOLD_S)
        wait = self._next - now
        self._next += 1 / REFUSALS_PER_S
        return wait


class _Watched:
    """A `send` that knows the answer's status; 0 while there is none."""

    def __init__(self, send: Send) -> None:
        self.status = 0
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


class Admission:
    """ASGI middleware: at most `limit` requests under /v1/ inside, and of searches at most as many
    as can be answered soon. Others get 503 with Retry-After.

    Health, metrics and the pages are not counted: they answer while searches are refused."""

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        patience: float,
        retry_after_s: float,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._limit = limit
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self._inside = 0
        self._searches = SearchLimit(limit, patience) if patience else None
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED_PREFIX):
            await self._app(scope, receive, send)
            return
        if self._inside >= self._limit:
            await self._refuse(scope, receive, send)
            return
        if self._searches is None or not scope["path"].startswith(SEARCH_PREFIX):
            await self._pass(scope, receive, send)
            return
        visit = self._searches.enter()
        if visit is None:
            await self._refuse(scope, receive, send)
            return
        watched = _Watched(send)
        try:
            await self._pass(scope, receive, watched)
        finally:
            degraded = scope.get("onesearch.facts", {}).get("degraded", ())
            self._searches.leave(
                visit,
                answered=watched.status == OK_STATUS and BESIDE.issuperset(degraded),
                late=watched.status == LATE_STATUS or not LATE.isdisjoint(degraded),
                allowed_s=scope.get("onesearch.allowed_s", 0.0),
            )
            self._metrics.search_limit.set(self._searches.limit)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._inside += 1
        self._metrics.in_flight.set(self._inside)
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1
            self._metrics.in_flight.set(self._inside)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.shed.inc()
        wait = self._pace.hold()
        if wait:
            await asyncio.sleep(wait)
        problem = Problem(
            "overloaded",
            "as many requests are being answered as can be in time",
            # Not all of the refused at the same instant.
            retry_after_s=random.uniform(1, 2) * self._retry_after_s,
        )
        await refuse(problem, scope, receive, send)
