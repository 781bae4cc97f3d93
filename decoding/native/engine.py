"""The embedded engine: one worker thread, waves of searches, weights replaced while it serves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from decoding.engine import EngineStats, Hypotheses, Prompt
from decoding.errors import DeadlineExceeded, EngineClosed, EngineOverloaded
from decoding.native.runner import DEFAULT_BUDGET_ROWS, Runner, Search
from decoding.native.scheduler import DEFAULT_QUEUE_ROWS, Job, Scheduler
from index.errors import OnesearchError
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

    The worker thread writes outcomes and counts down under the engine's lock; the last one, or the
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

    `threads`: torch's threads in this process; None leaves them alone. `budget_rows`: beams of one
    wave (a single wider search runs alone). `queue_rows`: beams that may wait. Call `start` before
    the first search: it compiles, warms up and starts the worker.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        budget_rows: int = DEFAULT_BUDGET_ROWS,
        queue_rows: int = DEFAULT_QUEUE_ROWS,
        threads: int | None = None,
    ) -> None:
        self._runner = runner
        self._threads = threads
        self._scheduler = Scheduler(budget_rows=budget_rows, queue_rows=queue_rows)
        self._counters = _Counters()
        self._wakeup = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="native-engine", daemon=True)

    async def start(self) -> NativeEngine:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        await asyncio.to_thread(self._runner.warm_up)
        self._worker.start()
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
                runner,
                partial(request.deliver, position),
            )
            for position, prompt in enumerate(prompts)
        ]
        with self._wakeup:
            if self._closed:
                raise EngineClosed("the engine is closed")
            try:
                self._scheduler.admit(jobs)
            except EngineOverloaded:
                self._counters.shed += len(jobs)
                raise
            self._wakeup.notify()
        try:
            await request.done
        except asyncio.CancelledError:
            request.abandoned = True
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
                queued_prompts=len(scheduler),
                queued_rows=scheduler.queued_rows,
                running_prompts=len(scheduler.running),
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
        """Idempotent. The running wave ends and answers; what waits gets EngineClosed."""
        with self._wakeup:
            self._closed = True
            for job in self._scheduler.drain():
                job.deliver(EngineClosed("the engine was closed before the search began"))
            self._wakeup.notify()
        if self._worker.is_alive():
            await asyncio.to_thread(self._worker.join)

    def _work(self) -> None:
        """The worker thread: wait, take a wave, run it, deliver."""
        while True:
            with self._wakeup:
                while not self._closed and not len(self._scheduler):
                    self._wakeup.wait()
                if self._closed:
                    return
                waiting = len(self._scheduler)
                wave = self._scheduler.next_wave()
                self._counters.cancelled += waiting - len(self._scheduler) - len(wave)
            if wave:
                self._run(wave)

    def _run(self, wave: list[Job]) -> None:
        outcomes: list[Outcome]
        try:
            outcomes = list(wave[0].runner.run([job.search for job in wave]))
        except Exception as error:  # noqa: BLE001  whatever failed, callers get an answer
            failure = OnesearchError(f"decoding failed: {type(error).__name__}: {error}")
            outcomes = [failure] * len(wave)
        with self._wakeup:
            self._scheduler.wave_done()
            self._count(wave, outcomes)
            for job, outcome in zip(wave, outcomes, strict=True):
                job.deliver(outcome)

    def _count(self, wave: list[Job], outcomes: Sequence[Outcome]) -> None:
        counters = self._counters
        counters.waves += 1
        counters.prompts += len(wave)
        counters.rows += sum(job.search.beam_width for job in wave)
        for outcome in outcomes:
            if isinstance(outcome, DeadlineExceeded):
                counters.expired += 1
            elif isinstance(outcome, OnesearchError):
                counters.failed += 1
            elif outcome is None:
                counters.cancelled += 1
