"""The embedded engine: waves of searches in worker threads, weights replaced while it serves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from decoding.engine import EngineStats, Hypotheses, Prompt
from decoding.errors import DeadlineExceeded, EngineClosed, EngineOverloaded
from decoding.native.runner import DEFAULT_BUDGET_ROWS, Runner, Search
from decoding.native.scheduler import (
    CPU_BUDGET_ROWS,
    DEFAULT_QUEUE_ROWS,
    Group,
    Job,
    Scheduler,
    Wave,
)
from index.errors import ConfigError, OnesearchError
from index.live.trie import AnyTrie
from index.trie import TrieFilter

Outcome = Hypotheses | OnesearchError | None


@dataclass(slots=True)
class _Counters:
    waves: int = 0
    prompts: int = 0
    rows: int = 0
    expired: int = 0
    shed: int = 0
    cancelled: int = 0
    failed: int = 0
    swaps: int = 0


class _Request:
    """Collects the outcomes of one `search` call; lives on the caller's event loop.

    Worker threads write outcomes and count down under the engine's lock; the last one, or the
    first failure, wakes the caller.
    """

    def __init__(self, prompts: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.results: list[Outcome] = [None] * prompts
        self.missing = prompts
        self.abandoned = False

    def is_abandoned(self) -> bool:
        return self.abandoned

    def deliver(self, position: int, outcome: Outcome) -> None:
        """From any thread."""
        self.results[position] = outcome
        self.missing -= 1
        if self.abandoned or (self.missing and isinstance(outcome, Hypotheses)):
            return
        # One failure answers the request; its other searches are not worth starting.
        self.abandoned = self.missing > 0
        try:
            self.loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            # The caller's loop is closed: nobody is left to tell.
            self.abandoned = True

    def _wake(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def answer(self) -> list[Hypotheses]:
        """The results, or the first failure raised."""
        found: list[Hypotheses] = []
        for outcome in self.results:
            if isinstance(outcome, OnesearchError):
                raise outcome
            if outcome is not None:
                found.append(outcome)
        return found


class NativeEngine:
    """Implements `decoding.engine.Engine` with our own inference, on the weights' device.

    `threads`: torch's threads in this process; None leaves them alone. `budget_rows`: size of one
    wave (a single larger search runs alone); None takes what suits the device. `queue_rows`: beams
    that may wait. `workers`: waves that run at the same time, each in a thread of its own. Call
    `start` before the first search: it compiles, warms up and starts the workers. Raises
    ConfigError for numbers below 1.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        budget_rows: int | None = None,
        queue_rows: int = DEFAULT_QUEUE_ROWS,
        workers: int = 1,
        threads: int | None = None,
    ) -> None:
        if budget_rows is None:
            on_cpu = runner.weights.device.type == "cpu"
            budget_rows = CPU_BUDGET_ROWS if on_cpu else DEFAULT_BUDGET_ROWS
        sizes = {"budget_rows": budget_rows, "queue_rows": queue_rows, "workers": workers}
        for name, size in (sizes | {"threads": 1 if threads is None else threads}).items():
            if size < 1:
                raise ConfigError(f"the engine's {name} is {size}, it must be at least 1")
        self._runner = runner
        self._threads = threads
        self._scheduler = Scheduler(budget_rows=budget_rows, queue_rows=queue_rows, workers=workers)
        self._counters = _Counters()
        self._wakeup = threading.Condition()
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, name=f"native-engine-{number}", daemon=True)
            for number in range(workers)
        ]

    async def start(self) -> NativeEngine:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        await asyncio.to_thread(self._runner.warm_up)
        for worker in self._workers:
            worker.start()
        return self

    @property
    def runner(self) -> Runner:
        """The live runner: it answers searches that name no other."""
        return self._runner

    async def search(
        self,
        prompts: Sequence[Prompt],
        beam_width: int,
        filter: TrieFilter | None = None,
        deadline: float | None = None,
        *,
        generation: Runner | None = None,
        trie: AnyTrie | None = None,
    ) -> list[Hypotheses]:
        runner = self._runner if generation is None else generation
        runner.check(prompts, beam_width, filter, trie)
        if not prompts:
            return []
        request = _Request(len(prompts))
        jobs = [
            Job(
                Search(prompt, beam_width, filter, deadline, request.is_abandoned, trie),
                partial(request.deliver, position),
            )
            for position, prompt in enumerate(prompts)
        ]
        group = Group.of(runner, jobs)
        self._admit(group, deadline)
        try:
            async with asyncio.timeout(_until(deadline)):
                await request.done
        except TimeoutError:
            with self._wakeup:
                self._counters.expired += self._abandon(request, group)
            raise DeadlineExceeded("the search was not done in time and was dropped") from None
        except asyncio.CancelledError:
            with self._wakeup:
                self._counters.cancelled += self._abandon(request, group)
            raise
        return request.answer()

    async def swap(self, generation: Runner, /) -> None:
        """Warm `generation` up beside the live one, then make it the live one. Searches that were
        accepted before end on the old one, which is freed when nobody holds it any more."""
        await asyncio.to_thread(generation.warm_up)
        with self._wakeup:
            if self._closed:
                raise EngineClosed("the engine is closed")
            self._runner = generation
            self._counters.swaps += 1

    def stats(self) -> EngineStats:
        with self._wakeup:
            scheduler, counters = self._scheduler, self._counters
            return EngineStats(
                queued_prompts=scheduler.queued_prompts,
                queued_rows=scheduler.queued_rows,
                running_prompts=sum(len(wave.jobs) for wave in scheduler.running),
                waves=counters.waves,
                prompts=counters.prompts,
                rows=counters.rows,
                expired=counters.expired,
                shed=counters.shed,
                cancelled=counters.cancelled,
                failed=counters.failed,
                swaps=counters.swaps,
                wave_s=scheduler.wave_s,
            )

    async def close(self) -> None:
        """Idempotent. Running waves end and answer; what waits gets EngineClosed."""
        with self._wakeup:
            self._closed = True
            for job in self._scheduler.drain():
                job.deliver(EngineClosed("the engine was closed before the search began"))
            self._wakeup.notify_all()
        for worker in self._workers:
            if worker.is_alive():
                await asyncio.to_thread(worker.join)

    def _admit(self, group: Group, deadline: float | None) -> None:
        with self._wakeup:
            if self._closed:
                raise EngineClosed("the engine is closed")
            try:
                self._scheduler.admit(group, deadline)
            except EngineOverloaded:
                self._counters.shed += len(group.waiting)
                raise
            self._wakeup.notify()

    def _abandon(self, request: _Request, group: Group) -> int:
        """Nobody waits any more: what is queued leaves the queue now, what runs is dropped by the
        runner. How many searches that was. Under the lock."""
        request.abandoned = True
        self._scheduler.withdraw(group)
        return request.missing

    def _work(self) -> None:
        """A worker thread: wait, take a wave, run it, deliver."""
        while True:
            with self._wakeup:
                while not self._closed and not len(self._scheduler):
                    self._wakeup.wait()
                if self._closed:
                    return
                wave = self._scheduler.next_wave()
                if len(self._scheduler):
                    self._wakeup.notify()
            if wave is not None:
                self._run(wave)
            # It holds its weights, and the next one may be long in coming.
            wave = None

    def _run(self, wave: Wave) -> None:
        outcomes: list[Outcome]
        try:
            found = wave.runner.run([job.search for job in wave.jobs])
            ended = time.monotonic()
            outcomes = [
                replace(outcome, began=wave.started, ended=ended)
                if isinstance(outcome, Hypotheses)
                else outcome
                for outcome in found
            ]
        except Exception as error:  # noqa: BLE001  whatever failed, callers get an answer
            failure = OnesearchError(f"decoding failed: {type(error).__name__}: {error}")
            outcomes = [failure] * len(wave.jobs)
        with self._wakeup:
            whole = all(isinstance(outcome, Hypotheses) for outcome in outcomes)
            self._scheduler.wave_done(wave, whole=whole)
            self._count(wave, outcomes)
            for job, group, outcome in zip(wave.jobs, wave.groups, outcomes, strict=True):
                job.deliver(outcome)
                if not isinstance(outcome, Hypotheses):
                    self._counters.cancelled += self._scheduler.withdraw(group)

    def _count(self, wave: Wave, outcomes: Sequence[Outcome]) -> None:
        """What nobody waited for any more was counted when that became known."""
        counters = self._counters
        counters.waves += 1
        counters.prompts += len(wave.jobs)
        counters.rows += wave.rows
        for job, outcome in zip(wave.jobs, outcomes, strict=True):
            if job.search.cancelled():
                continue
            if isinstance(outcome, DeadlineExceeded):
                counters.expired += 1
            elif isinstance(outcome, OnesearchError):
                counters.failed += 1


def _until(deadline: float | None) -> float | None:
    """Seconds that are left; the deadline's clock need not be the event loop's."""
    return None if deadline is None else deadline - time.monotonic()
