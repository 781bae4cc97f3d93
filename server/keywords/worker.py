"""A worker: takes jobs, hands them to its generator in batches, stores the answers.

One loop takes a batch whenever one of `concurrency` slots is free. While a batch is worked on its
lease is renewed, so that a slow generator loses no job; when the worker dies, the lease ends and
another takes the batch. An answer is stored and its job ended in one step, so a job is done twice
only when its worker was given up too early, and then its effect is the same.

What goes wrong with a job: a failure of the service behind the generator (unavailable, rate,
budget) postpones it until it is `STALE_S` old; a failure that may pass (a timeout, an error in the
generator) until `attempts` are used up; any other, at once, makes it a dead letter. Waits double
and are spread at random. A service that says when to come back is left alone until then: its jobs
stay in the queue, in their order.

The generator may be replaced while it works (`server.keywords.following`): a batch ends with the
one that it began with, and what it made is stored under that one's version.

While Redis is away the worker keeps what it has made and tries to store it again. `stop` ends it:
no new jobs, and at most `drain_s` for those in hand; what is not done then is handed out again when
its lease ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from structlog.typing import FilteringBoundLogger

from index.errors import OnesearchError
from server.keywords.generator import Failure, GenerationError, KeywordGenerator
from server.keywords.keywords import Keywords, keywords_to_json
from server.keywords.metrics import WorkerMetrics
from server.keywords.queue import (
    MAX_DELIVERIES,
    Dead,
    Done,
    Held,
    KeywordQueue,
    Taken,
)
from server.keywords.store import KeywordStore, failure_to_json, ttl_of
from server.keywords.worker_plan import Tally, WorkerPlan
from server.redis.connection import RedisUnavailable
from server.redis.keys import DAY_S, Keys

if TYPE_CHECKING:
    from server.traces import Traces

LONGEST_RETRY_S = 300.0
STALE_S = float(DAY_S)
GENERATION_S = 600.0
"""A generator has limits of its own; this one is for a generator that forgot them."""
IDLE_S = 0.4
LOG_S = 10.0
AWAY_S, LONGEST_AWAY_S = 0.1, 2.0
SERVICE_FAILURES = frozenset((Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.BUDGET))

Result = TypeVar("Result")


class Worker:
    """One process's worker; `run` once."""

    def __init__(
        self,
        queue: KeywordQueue,
        store: KeywordStore,
        keys: Keys,
        generator: KeywordGenerator,
        metrics: WorkerMetrics,
        log: FilteringBoundLogger,
        plan: WorkerPlan,
        traces: Traces | None = None,
    ) -> None:
        self.tally = Tally()
        self._queue = queue
        self._store = store
        self._keys = keys
        self._generator = generator
        self._metrics = metrics
        self._log = log
        self._plan = plan
        self._traces = traces
        self._in_hand: dict[tuple[int, bytes], Held] = {}
        self._batches: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._reclaim_at = 0.0
        self._away_s = 0.0
        self._paused_until = 0.0

    async def run(self, stop: asyncio.Event) -> Tally:
        """Work until `stop` is set, or with `until_empty` until there is nothing left to do."""
        batches = self._batches

        def ended(batch: asyncio.Task[None]) -> None:
            batches.discard(batch)
            self._wake.set()

        async with asyncio.TaskGroup() as group:
            keeping = [
                group.create_task(work)
                for work in (self._holding(), self._reporting(), self._waking(stop))
            ]
            try:
                while await self._slot_free(stop):
                    taken = await self._take(stop)
                    if taken is None:
                        break
                    if taken:
                        batch = group.create_task(self._work(taken))
                        batches.add(batch)
                        batch.add_done_callback(ended)
                if batches:
                    self._log.info("draining", jobs=len(self._in_hand))
                    await self._drain()
            finally:
                for task in (*keeping, *batches):
                    task.cancel()
        return self.tally

    @property
    def generator(self) -> KeywordGenerator:
        """What new batches begin with."""
        return self._generator

    async def replace(self, generator: KeywordGenerator) -> None:
        """Batches begin with another generator from now on; on return nobody uses the one before
        any more."""
        self._generator = generator
        if self._batches:
            await asyncio.wait(set(self._batches))

    async def _slot_free(self, stop: asyncio.Event) -> bool:
        """Wait for a slot, and for the service if it is left alone; False when there is to be no
        further batch."""
        while not stop.is_set():
            paused_s = self._paused_until - time.monotonic()
            full = len(self._batches) >= self._plan.concurrency
            if not full and paused_s <= 0:
                return True
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if full else paused_s):
                    await self._wake.wait()
        return False

    async def _waking(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _take(self, stop: asyncio.Event) -> Taken | None:
        """A batch, as soon as there is one; an empty one after a while; None when all is done."""
        reclaim = time.monotonic() >= self._reclaim_at
        try:
            taken = await self._queue.take(self._plan.batch, reclaim=reclaim)
            if reclaim:
                self._reclaim_at = time.monotonic() + self._plan.lease_s / 2
            if not taken and not stop.is_set():
                if self._plan.until_empty and not (await self._queue.status()).jobs:
                    return None
                taken = await self._queue.wait(min(IDLE_S, self._plan.lease_s / 2))
        except RedisUnavailable as error:
            if not self._away_s:
                self._log.warning("no jobs without Redis", detail=str(error))
            self._away_s = min(max(AWAY_S, 2 * self._away_s), LONGEST_AWAY_S)
            await asyncio.sleep(self._away_s * random.uniform(0.5, 1))
            return Taken()
        if self._away_s:
            self._away_s = 0.0
            self._log.info("Redis is back")
        for held in taken.jobs:
            self._in_hand[held.place, held.entry] = held
        self._metrics.in_hand.set(len(self._in_hand))
        return taken

    async def _work(self, taken: Taken) -> None:
        generator = self._generator
        try:
            for entry in taken.unreadable:
                await self._persist(lambda entry=entry: self._queue.discard(entry))
                self._count("dead", 1)
            worn = [held for held in taken.jobs if held.deliveries > MAX_DELIVERIES]
            if worn:
                await self._bury(worn, f"its workers died {MAX_DELIVERIES} times", generator)
            jobs = [held for held in taken.jobs if held.deliveries <= MAX_DELIVERIES]
            if jobs:
                await self._make(jobs, generator)
        finally:
            for held in taken.jobs:
                self._in_hand.pop((held.place, held.entry), None)
            self._metrics.in_hand.set(len(self._in_hand))

    async def _make(self, jobs: Sequence[Held], generator: KeywordGenerator) -> None:
        """Generate and store. A batch that breaks the generator is tried job by job."""
        began, taken_s = time.perf_counter(), time.time()
        try:
            async with asyncio.timeout(GENERATION_S):
                answers = await generator.generate([held.job.request for held in jobs])
        except Exception as error:  # noqa: BLE001  whatever broke in there, other jobs go on
            if len(jobs) > 1:
                for held in jobs:
                    await self._make([held], generator)
                return
            self._log.exception("generator failed", job=jobs[0].job.id)
            told = f"{type(error).__name__}: {error}"
            answers = [GenerationError(Failure.TIMEOUT, " ".join(told.split())[:500])]
        generated_s = time.perf_counter() - began
        self._metrics.seconds.observe(generated_s)
        self._metrics.batch.observe(len(jobs))
        done: list[Done] = []
        nothing = 0
        for held, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, GenerationError):
                await self._fail(held, answer, generator)
            else:
                done.append(self._done(held, answer, generator))
                nothing += not answer.terms
        if done:
            ended = await self._persist(lambda: self._queue.finish(done))
            self._count("repeated", len(ended) - sum(ended))
            self._count("nothing", min(nothing, sum(ended)))
            self._count("made", max(0, sum(ended) - nothing))
        stored_s = time.perf_counter() - began - generated_s
        for held, answer in zip(jobs, answers, strict=True):
            self._trace(held, answer, generator, taken_s, generated_s, stored_s)

    def _trace(
        self,
        held: Held,
        answer: Keywords | GenerationError,
        generator: KeywordGenerator,
        taken_s: float,
        generated_s: float,
        stored_s: float,
    ) -> None:
        """Tell the trace of the search that asked what became of its job."""
        job = held.job
        if self._traces is None or job.traceparent is None:
            return
        waited_s = max(0.0, taken_s - job.created_s)
        failure = answer.failure if isinstance(answer, GenerationError) else ""
        facts: dict[str, str | int] = {"generator": generator.name, "attempt": job.attempt}
        facts["outcome"] = failure or ("made" if getattr(answer, "terms", ()) else "nothing")
        if self._traces.with_queries:
            facts["query"] = job.request.query
        parts = {"queue": waited_s, "generate": generated_s, "store": stored_s}
        self._traces.job("keywords.job", job.traceparent, parts, facts)

    def _done(self, held: Held, keywords: Keywords, generator: KeywordGenerator) -> Done:
        user_id = held.job.request.user_id
        return Done(
            held,
            self._store_key(held, generator),
            keywords_to_json(keywords),
            ttl_of(keywords, user_id),
        )

    async def _fail(self, held: Held, error: GenerationError, generator: KeywordGenerator) -> None:
        attempt = held.job.attempt
        if error.failure in SERVICE_FAILURES:
            again = time.time() - held.job.created_s < STALE_S
            self._pause(error)
        else:
            again = error.retryable and attempt + 1 < self._plan.attempts
        if not again:
            await self._bury([held], f"{error.failure}: {error.message}", generator)
            return
        wait_s = min(self._plan.retry_s * 2 ** min(attempt, 20), LONGEST_RETRY_S)
        wait_s = max(wait_s, error.retry_after_s or 0) * random.uniform(0.75, 1.25)
        moved = await self._persist(lambda: self._queue.postpone(held, wait_s))
        self._count("retried" if moved else "repeated", 1)
        self._log.info(
            "job postponed",
            job=held.job.id,
            failure=error.failure,
            wait_s=round(wait_s, 1),
            detail=error.message,
        )

    def _pause(self, error: GenerationError) -> None:
        """Take no jobs while the service is known not to do them."""
        wait_s = min(error.retry_after_s or 0.0, LONGEST_RETRY_S)
        now = time.monotonic()
        if wait_s and now >= self._paused_until:
            self._log.warning(
                "no jobs until the generator's service is back",
                failure=error.failure,
                wait_s=round(wait_s, 1),
                detail=error.message,
            )
        self._paused_until = max(self._paused_until, now + wait_s)

    async def _bury(self, jobs: Sequence[Held], reason: str, generator: KeywordGenerator) -> None:
        value = failure_to_json(reason)
        dead = [Dead(held, self._store_key(held, generator), reason, value) for held in jobs]
        buried = sum(await self._persist(lambda: self._queue.bury(dead)))
        self._count("dead", buried)
        self._count("repeated", len(dead) - buried)
        for held in jobs:
            self._log.error("dead letter", job=held.job.id, reason=reason)

    def _store_key(self, held: Held, generator: KeywordGenerator) -> str:
        request = held.job.request
        return self._keys.keywords(generator.version, request.normalised, request.user_id)

    async def _persist(self, step: Callable[[], Awaitable[Result]]) -> Result:
        """A step in Redis, again and again while Redis is away."""
        away_s = AWAY_S
        while True:
            try:
                return await step()
            except RedisUnavailable as error:
                self._log.warning("not stored without Redis", detail=str(error))
                await asyncio.sleep(away_s * random.uniform(0.5, 1))
                away_s = min(2 * away_s, LONGEST_AWAY_S)

    async def _drain(self) -> None:
        left = set(self._batches)
        _, late = await asyncio.wait(left, timeout=self._plan.drain_s)
        if late:
            self._log.warning("not drained in time", jobs=len(self._in_hand))

    async def _holding(self) -> None:
        """Renew the lease of what is in hand."""
        while True:
            await asyncio.sleep(self._plan.lease_s / 3)
            held = list(self._in_hand.values())
            if not held:
                continue
            try:
                await self._queue.hold(held)
            except RedisUnavailable as error:
                self._log.debug("lease not renewed", detail=str(error))

    async def _reporting(self) -> None:
        """Say which version is made, read the queue's numbers, write the progress."""
        announced, told, logged = "", "", time.monotonic()
        before = self.tally.done
        while True:
            try:
                current, own = await self._store.version(), self._generator.version
                if announced != own or current is None:
                    await self._store.announce(own)
                    announced = own
                elif current != own and told != own:
                    told = own
                    self._log.warning(
                        "another worker makes another version, which is the one that is read",
                        own=own,
                        other=current,
                    )
                self._metrics.status = await self._queue.status()
            except RedisUnavailable:
                self._metrics.status = None
            passed = time.monotonic() - logged
            if passed >= LOG_S:
                if self.tally.done != before or self._in_hand:
                    self._log_progress((self.tally.done - before) / passed)
                before, logged = self.tally.done, time.monotonic()
            await asyncio.sleep(1.0)

    def _log_progress(self, per_s: float) -> None:
        status = self._metrics.status
        self._log.info(
            "keywords",
            made=self.tally.made,
            nothing=self.tally.nothing,
            retried=self.tally.retried,
            dead=self.tally.dead,
            per_s=round(per_s, 1),
            in_hand=len(self._in_hand),
            waiting=None if status is None else sum(status.waiting.values()),
        )

    def _count(self, outcome: str, count: int) -> None:
        if count:
            self._metrics.jobs[outcome].inc(count)
            setattr(self.tally, outcome, getattr(self.tally, outcome) + count)


def worker_error(error: BaseExceptionGroup[BaseException]) -> OnesearchError | None:
    """The one error for a person in what ended a worker, if that is all there is."""
    found, rest = error.split(OnesearchError)
    if found is None or rest is not None:
        return None
    first: BaseException = found
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, OnesearchError)
    return first
