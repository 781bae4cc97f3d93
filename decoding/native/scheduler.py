"""Waiting searches, and which of them make the next wave.

First come, first served, under a row budget; a wave holds searches of one runner only, so no
search ever mixes generations. The queue is bounded twice: by rows, and by what the newcomer's
deadline allows, estimated from recent waves. Shedding early is kinder than being late.

Not thread-safe: the engine holds a lock around it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from decoding.engine import Hypotheses
from decoding.errors import EngineOverloaded
from decoding.native.runner import Runner, Search
from index.errors import OnesearchError

DEFAULT_QUEUE_ROWS = 65_536
SMOOTHING = 0.2
"""Weight of the newest wave in the smoothed wave time."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One search, the runner it was accepted for, and where its result goes."""

    search: Search
    runner: Runner
    deliver: Callable[[Hypotheses | OnesearchError | None], None]


class Scheduler:
    """A bounded queue that is emptied in waves."""

    def __init__(self, *, budget_rows: int, queue_rows: int) -> None:
        self.budget_rows = budget_rows
        self.queue_rows = queue_rows
        self.queued_rows = 0
        self.running: list[Job] = []
        self.wave_s = 0.0
        self._queue: deque[Job] = deque()
        self._started = 0.0

    def __len__(self) -> int:
        return len(self._queue)

    def admit(self, jobs: list[Job]) -> None:
        """Queue all jobs of one request, or raise EngineOverloaded and queue none."""
        rows = sum(job.search.beam_width for job in jobs)
        wait = self.expected_wait(rows)
        # An idle engine takes a request of any size: it would never find a better moment.
        if self.queued_rows and self.queued_rows + rows > self.queue_rows:
            raise EngineOverloaded(f"{self.queued_rows} beam rows are waiting", max(wait, 0.01))
        deadline = jobs[0].search.deadline
        if self.queued_rows and deadline is not None:
            left = deadline - time.monotonic()
            if wait > left:
                raise EngineOverloaded(
                    f"about {wait * 1000:.0f} ms to wait, {max(left, 0) * 1000:.0f} ms left",
                    wait - max(left, 0.0),
                )
        self._queue.extend(jobs)
        self.queued_rows += rows

    def expected_wait(self, rows: int) -> float:
        """Seconds until `rows` more would be done."""
        waves = math.ceil((self.queued_rows + rows) / self.budget_rows)
        running = 0.0
        if self.running:
            running = max(0.0, self.wave_s - (time.monotonic() - self._started))
        return running + waves * self.wave_s

    def next_wave(self) -> list[Job]:
        """The oldest jobs that fit, at least one; empty when nothing waits."""
        wave: list[Job] = []
        rows = 0
        while self._queue:
            job = self._queue[0]
            width = job.search.beam_width
            if wave and (rows + width > self.budget_rows or job.runner is not wave[0].runner):
                break
            self._queue.popleft()
            self.queued_rows -= width
            if job.search.cancelled():
                job.deliver(None)
                continue
            wave.append(job)
            rows += width
        self.running = wave
        self._started = time.monotonic()
        return wave

    def wave_done(self) -> None:
        """The running wave has ended; its time enters the estimate."""
        seconds = time.monotonic() - self._started
        self.wave_s += (SMOOTHING if self.wave_s else 1.0) * (seconds - self.wave_s)
        self.running = []

    def drain(self) -> list[Job]:
        """Take everything that waits."""
        jobs = list(self._queue)
        self._queue.clear()
        self.queued_rows = 0
        return jobs
