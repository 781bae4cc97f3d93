"""Waiting searches, and which of them make the next wave.

The searches of one request are a group. A group is queued whole or refused; it enters one wave
whole, unless it is larger than a wave can be: then it takes as many waves as it needs, and a single
search that is larger than a wave has one of its own. The oldest group always begins the next wave,
so none waits longer than for those before it; what room it leaves is filled, oldest first, with
groups that fit. A wave holds searches of one runner, so that no search mixes generations.

A wave's size is counted in rows: a beam is a row, and a prompt token `TOKEN_ROWS` of one. The
queue is bounded twice: by rows, and by what the newcomer's deadline allows, as predicted from what
waves cost. Shedding early is kinder than being late.

Not thread-safe: the engine holds a lock around it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from decoding.engine import Hypotheses
from decoding.errors import EngineOverloaded
from decoding.native.cost import WaveCost
from decoding.native.runner import Runner, Search
from index.errors import OnesearchError

CPU_BUDGET_ROWS = 512
"""Waves of 1024 rows save a few percent of a row's time, and whoever just missed one waits twice as
long; from 2048 on the caches make rows in float32 dearer again."""
DEFAULT_QUEUE_ROWS = 65_536
TOKEN_ROWS = 0.5
"""A prompt token passes the layers once, a beam once per level after the first, with expansion."""
MAX_MISFITS = 64
"""Groups that did not fit, after which a wave is no longer filled."""
SMOOTHING = 0.2
"""Weight of the newest wave in the smoothed wave time."""
MIN_RETRY_S = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One search and where its result goes."""

    search: Search
    deliver: Callable[[Hypotheses | OnesearchError | None], None]

    @property
    def tokens(self) -> int:
        return len(self.search.prompt.token_ids)

    @property
    def size(self) -> float:
        """In rows, the prompt included."""
        return self.search.beam_width + TOKEN_ROWS * self.tokens


@dataclass(slots=True, eq=False)
class Group:
    """The searches of one request, all for one runner; `waiting` are those not yet in a wave."""

    runner: Runner
    waiting: deque[Job]

    @classmethod
    def of(cls, runner: Runner, jobs: Sequence[Job]) -> Group:
        return cls(runner, deque(jobs))

    @property
    def size(self) -> float:
        return sum(job.size for job in self.waiting)


@dataclass(slots=True, eq=False)
class Wave:
    """What runs together, since when, and how long that was expected to take."""

    runner: Runner
    started: float
    jobs: list[Job] = field(default_factory=list[Job])
    groups: list[Group] = field(default_factory=list[Group])
    """Of each job."""
    expected_s: float = 0.0

    @property
    def rows(self) -> int:
        return sum(job.search.beam_width for job in self.jobs)

    @property
    def tokens(self) -> int:
        return sum(job.tokens for job in self.jobs)


class Scheduler:
    """A bounded queue that is emptied in waves, up to `workers` of them at a time."""

    def __init__(
        self,
        *,
        budget_rows: int,
        queue_rows: int,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget_rows = budget_rows
        self.queue_rows = queue_rows
        self.workers = workers
        self.queued_rows = 0
        self.queued_prompts = 0
        self.running: list[Wave] = []
        self.wave_s = 0.0
        self.cost = WaveCost()
        self._queued_tokens = 0
        self._queue: dict[Group, None] = {}
        self._clock = clock

    def __len__(self) -> int:
        """Groups that wait."""
        return len(self._queue)

    def admit(self, group: Group, deadline: float | None = None) -> None:
        """Queue a group whole, or raise EngineOverloaded and queue nothing."""
        rows = sum(job.search.beam_width for job in group.waiting)
        tokens = sum(job.tokens for job in group.waiting)
        wait = self.expected_wait(rows, tokens)
        # An idle engine takes a request of any size: it would never find a better moment.
        if self.queued_rows and self.queued_rows + rows > self.queue_rows:
            raise EngineOverloaded(
                f"{self.queued_rows} beam rows are waiting", max(wait, MIN_RETRY_S)
            )
        # With nothing before it a search is tried, however dear the last ones were: what is never
        # tried is never learned either.
        if deadline is not None and (self._queue or self.running):
            left = deadline - self._clock()
            if wait > left:
                raise EngineOverloaded(
                    f"about {wait * 1000:.0f} ms to wait, {max(left, 0) * 1000:.0f} ms left",
                    max(wait - max(left, 0.0), MIN_RETRY_S),
                )
        self._queue[group] = None
        self._count(group.waiting, 1)

    def expected_wait(self, rows: int = 0, tokens: int = 0) -> float:
        """Seconds until so much more would be done."""
        rows, tokens = rows + self.queued_rows, tokens + self._queued_tokens
        waves = math.ceil((rows + TOKEN_ROWS * tokens) / self.budget_rows)
        now = self._clock()
        running = sum(max(0.0, wave.started + wave.expected_s - now) for wave in self.running)
        return (running + self.cost.seconds(rows, tokens, waves)) / self.workers

    def withdraw(self, group: Group) -> int:
        """Take out what still waits of a group; how many searches that was."""
        if group not in self._queue:
            return 0
        del self._queue[group]
        return len(self._take(group, len(group.waiting)))

    def next_wave(self) -> Wave | None:
        """The oldest group and what fits beside it; None when nothing waits."""
        room = self._room()
        wave: Wave | None = None
        misfits = 0
        for group in list(islice(self._queue, self.budget_rows + MAX_MISFITS)):
            if wave is None:
                wave = Wave(group.runner, self._clock())
                jobs = self._take(group, _fitting(group, room))
            elif group.runner is wave.runner and group.size <= room:
                jobs = self._take(group, len(group.waiting))
            else:
                misfits += 1
                if misfits > MAX_MISFITS:
                    break
                continue
            if not group.waiting:
                del self._queue[group]
            wave.jobs += jobs
            wave.groups += [group] * len(jobs)
            room -= sum(job.size for job in jobs)
            if room < 1:
                break
        if wave is not None:
            wave.expected_s = self.cost.seconds(wave.rows, wave.tokens)
            self.running.append(wave)
        return wave

    def wave_done(self, wave: Wave, *, whole: bool = True) -> None:
        """A wave has ended; its time teaches what waves cost. One that was not `whole`, because
        searches were dropped on the way, says only that all its work takes no less."""
        self.running.remove(wave)
        seconds = self._clock() - wave.started
        self.wave_s += (SMOOTHING if self.wave_s else 1.0) * (seconds - self.wave_s)
        if whole or seconds > wave.expected_s:
            self.cost.learn(wave.rows, wave.tokens, seconds)

    def drain(self) -> list[Job]:
        """Take everything that waits."""
        jobs = [job for group in self._queue for job in self._take(group, len(group.waiting))]
        self._queue.clear()
        return jobs

    def _room(self) -> float:
        """A wave's size: what waits is shared among the workers that have nothing to do."""
        idle = self.workers - len(self.running)
        if idle < 2:
            return self.budget_rows
        waiting = self.queued_rows + TOKEN_ROWS * self._queued_tokens
        return min(self.budget_rows, max(1.0, waiting / idle))

    def _take(self, group: Group, count: int) -> list[Job]:
        jobs = [group.waiting.popleft() for _ in range(count)]
        self._count(jobs, -1)
        return jobs

    def _count(self, jobs: Iterable[Job], sign: int) -> None:
        for job in jobs:
            self.queued_prompts += sign
            self.queued_rows += sign * job.search.beam_width
            self._queued_tokens += sign * job.tokens


def _fitting(group: Group, room: float) -> int:
    """How many of a group's searches begin a wave: at least one."""
    count, size = 0, 0.0
    for job in group.waiting:
        size += job.size
        if count and size > room:
            break
        count += 1
    return count
