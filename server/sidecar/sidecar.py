"""The sidecar: rounds one after the other, one process at a time, resumed wherever it was killed.

    lease → open round, or a new one from what users did since → steps → ended → announce

A step that raises is tried again with the next look, `attempts` times in all, kills included; then
the round has failed, its behaviour is kept beside it, and the next round takes what came later.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from index.dataset import Dataset
from index.errors import ConfigError, OnesearchError
from models.registry.registry import Provenance, Registry
from models.training.loop import Progress
from server.keywords.export import export as export_keywords
from server.redis.announcements import announce_once
from server.redis.connection import RedisConnection
from server.redis.keys import Keys
from server.settings import Settings
from server.sidecar.batch import Batch, Bounds, collect, joined
from server.sidecar.extension import sides_of
from server.sidecar.lease import Lease, LeaseLost
from server.sidecar.metrics import SidecarMetrics
from server.sidecar.rounds import Round, Rounds
from server.sidecar.settings import SidecarSettings
from server.sidecar.work import KEYWORDS, SIDES, WHO, Work, held_out_count, sides_read


class Stopped(OnesearchError):
    """Somebody asked the sidecar to end; what it was at is gone on with next time."""


@dataclass(slots=True, eq=False)
class Sidecar:
    """One process's sidecar of a registry. Used on one event loop; steps run in a thread."""

    registry: Registry
    redis: RedisConnection
    settings: SidecarSettings
    gateway: Settings
    log: FilteringBoundLogger
    metrics: SidecarMetrics
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def rounds(self) -> Rounds:
        return Rounds(self.settings.state)

    async def run(self) -> None:
        """Round after round until `stop`. What may pass is logged and waited out."""
        while not self.stop.is_set():
            try:
                done = await self.once()
            except Stopped:
                return
            except OnesearchError as error:
                self.log.warning("sidecar", problem=str(error), kind=type(error).__name__)
                done = None
            if done is None:
                try:
                    await asyncio.wait_for(self.stop.wait(), self.settings.every_s)
                except TimeoutError:
                    continue

    async def once(self) -> Round | None:
        """Go on with the open round, or begin one if there is enough for it; the ended round, None
        where there was not.

        Raises LeaseHeld, LeaseLost, Stopped, RedisUnavailable, and what a step raises.
        """
        keys = Keys(self.gateway.redis_prefix)
        lease = Lease(self.redis, keys, self.settings.lease_s)
        with self.rounds.locked():
            try:
                async with lease.holding():
                    self.metrics.holds(True)
                    found = self.rounds.all()
                    self._tell(found)
                    if found and found[-1].outcome == "open":
                        one = found[-1]
                        self.log.info("going on", round=one.number, step=one.step)
                    else:
                        one = await self._begin(keys)
                    return None if one is None else await self._finish(one, lease)
            finally:
                self.metrics.holds(False)
                self.metrics.write()

    async def _begin(self, keys: Keys) -> Round | None:
        """A new round with its batch on disk; None where there is too little."""
        champion = self.registry.aliases().champion
        if champion is None:
            raise ConfigError(f"{self.registry.path} has no champion to go on from")
        rounds, settings, now = self.rounds, self.settings, time.time()
        number = rounds.next_number()
        again = rounds.wanted_again()
        if again is not None:
            old = rounds.read(again)
            Batch.read(rounds.path(again), old.until).write(rounds.path(number))
            one = Round(number, old.since, old.until, now, now, champion=champion, replays=again)
            one = rounds.write(one)
            rounds.begun_again(again)
        else:
            since = rounds.cursor()
            bounds = Bounds(settings.max_searches, settings.settle_s, settings.late_clicks_s)
            batch = await collect(self.redis, keys, settings.behaviour, since, bounds)
            held_out = await asyncio.to_thread(self._held_out, batch)
            self.metrics.waiting(batch.clicks)
            if batch.clicks < settings.min_clicks or held_out < settings.gate.min_searches:
                enough = batch.full and batch.clicks > 0
                self.log.info("waiting", clicks=batch.clicks, held_out=held_out, full=batch.full)
                if not enough:
                    return None
            await asyncio.to_thread(batch.write, rounds.path(number))
            one = Round(number, since, batch.until, now, now, champion=champion)
            one = replace(one, notes=tuple(f"{log} may have a gap" for log in batch.gaps))
            await self._keep_keywords(rounds.path(number), keys)
            one = rounds.write(one)
        self.log.info("round", round=one.number, champion=champion, replays=one.replays)
        return one

    def _held_out(self, batch: Batch) -> int:
        """Held-out searches that a comparison would have: of the dataset, of accepted rounds, and
        of this batch."""
        if batch.clicks < self.settings.min_clicks:
            return 0
        base = self._base()
        known = base.split_of()
        found = held_out_count(base.events, known)
        for other in self.rounds.accepted():
            known |= sides_read(self.rounds.path(other.number) / SIDES)
            found += int(other.facts["held_out"])
        rows = joined(batch).rows
        queries = {query for query in rows.column("query").to_pylist() if query}
        return found + held_out_count(rows, sides_of(known, sorted(queries)).of)

    async def _keep_keywords(self, folder: Path, keys: Keys) -> None:
        """What was made of keywords so far, for training; no file where there is nothing."""
        if not await export_keywords(self.redis, keys, folder / KEYWORDS):
            (folder / KEYWORDS).unlink()

    async def _finish(self, one: Round, lease: Lease) -> Round:
        """Step after step to the round's end."""
        work = Work(
            self.rounds,
            self.registry,
            self._base_path(),
            self.settings,
            lambda: self._alive(lease),
            self._show,
        )
        with self.registry.pinned(one.champion, f"sidecar, round {one.number}"):
            while one.outcome == "open":
                one = await self._step(work, one)
                self._tell(self.rounds.all())
        self.rounds.tidy(one.number)
        facts = {"generation": one.generation, "reasons": one.reasons, "notes": one.notes}
        self.log.info("ended", round=one.number, outcome=one.outcome, **facts)
        await self._announce(one)
        return one

    async def _step(self, work: Work, one: Round) -> Round:
        """One attempt at one step, counted before it begins."""
        rounds, step, started = self.rounds, one.step, time.monotonic()
        if one.attempts >= self.settings.attempts:
            error = str(one.facts.get("error", "it never came to its end"))
            return rounds.write(one.ended("failed", (f"{step}: {error}",)))
        begun = rounds.write(replace(one, attempts=one.attempts + 1))
        try:
            one = await asyncio.to_thread(work.step, begun)
        except (LeaseLost, Stopped):
            # Nobody's fault: the attempt does not count.
            rounds.write(one)
            raise
        except OnesearchError as error:
            rounds.write(replace(begun, facts={**begun.facts, "error": str(error)}))
            raise
        took = {**one.facts.get("seconds", {}), step: round(time.monotonic() - started, 2)}
        one = rounds.write(replace(one, facts={**one.facts, "seconds": took}))
        self.log.info("step", round=one.number, step=step, outcome=one.outcome, took_s=took[step])
        return one

    async def _announce(self, one: Round) -> None:
        """Tell the registry's history of a refusal, and servers of a change."""
        if one.outcome in ("refused", "failed"):
            by = Provenance(WHO, f"round {one.number}: {'; '.join(one.reasons)}")
            await asyncio.to_thread(self.registry.note, f"sidecar-{one.outcome}", by)
        elif one.outcome == "published":
            try:
                await announce_once(self.gateway, self.registry.aliases())
            except OnesearchError as error:
                self.log.warning("not announced, servers look by themselves", problem=str(error))

    def _alive(self, lease: Lease) -> None:
        """Raises LeaseLost, Stopped."""
        lease.check()
        if self.stop.is_set():
            raise Stopped("asked to end; the round goes on with the next start")

    def _show(self, stage: str, progress: Progress) -> None:
        self.metrics.training(stage, progress)

    def _tell(self, rounds: list[Round]) -> None:
        self.metrics.tell(rounds)
        self.metrics.write()

    def _base_path(self) -> Path:
        if self.settings.dataset is None:
            raise ConfigError("name the dataset of the champion's snapshot: --dataset")
        return self.settings.dataset

    def _base(self) -> Dataset:
        return Dataset.open(self._base_path(), verify=False)
