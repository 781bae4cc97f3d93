"""What a server does for its catalogue from time to time: measure codec drift, compact.

A compaction is made by the process that takes the changes. The champion that it names in the
registry is served like any other one (`server.rollout`), with the catalogue as it goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from structlog.typing import FilteringBoundLogger

from index.drift import Drift, DriftMeter
from index.errors import OnesearchError
from index.live.catalogue import LiveCatalogue
from models.registry.compaction import CompactionBarred, Due, compact
from models.registry.promotion import AliasMoved
from models.registry.record import GenerationRecord
from models.registry.registry import Provenance
from server.generation import Generation
from server.pipeline import Pipeline
from server.rollout import Rollout
from server.settings import Settings

LOOK_S = 10.0
RETRY_S = 300.0
"""After a compaction that failed none is tried for this long."""
BY = Provenance("onesearch serve", "compaction is due")


@dataclass(frozen=True, slots=True)
class UpkeepStatus:
    """`pending`: changes that the champion's snapshot does not hold. `problem`: of the last
    compaction, "" when it went well. `drift`: None where nothing was measured yet."""

    pending: int = 0
    compactions: int = 0
    problem: str = ""
    drift: Drift | None = None


class Upkeep:
    """One server's. Used on one event loop; the work is done in threads."""

    def __init__(
        self,
        pipeline: Pipeline,
        rollout: Rollout | None,
        settings: Settings,
        log: FilteringBoundLogger,
    ) -> None:
        """Without `rollout` there is no registry to compact into."""
        self._pipeline = pipeline
        self._rollout = rollout
        self._due = Due(settings.compaction_changes, settings.compaction_age_s)
        self._log = log
        self._meter, self._origin = DriftMeter(), ""
        self._compactions, self._problem, self._retry_at = 0, "", 0.0
        self._pending = 0
        self._drift: Drift | None = None

    @property
    def status(self) -> UpkeepStatus:
        """As of the last look."""
        return UpkeepStatus(self._pending, self._compactions, self._problem, self._drift)

    async def look(self) -> None:
        """Do what is due. What fails is told in the log and in `status`, and tried again later."""
        generation = self._pipeline.live
        catalogue = generation.catalogue
        if catalogue is None:
            return
        self._drift = await asyncio.to_thread(self._measured, generation)
        rollout = self._rollout
        if rollout is None:
            return
        record = rollout.loaded[0].record
        sequence = catalogue.view.sequence
        self._pending = max(0, sequence - record.catalogue_sequence)
        if rollout.status().champion != record.version or time.monotonic() < self._retry_at:
            return
        if self._due.holds(record, sequence, time.time()):
            await self._compact(rollout, record, catalogue)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Look again and again as long as the block lasts."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    def _measured(self, generation: Generation) -> Drift:
        """In a thread."""
        view = generation.view
        if view.origin_version != self._origin:
            self._meter, self._origin = DriftMeter(), view.origin_version
        return self._meter.measure(view)

    async def _compact(
        self, rollout: Rollout, record: GenerationRecord, catalogue: LiveCatalogue
    ) -> None:
        started = time.monotonic()
        try:
            made = await asyncio.to_thread(compact, rollout.registry, record, catalogue, BY)
        except AliasMoved:
            # A new champion, maybe of our own last compaction, is about to be served.
            return
        except CompactionBarred as error:
            # Nothing is wrong: a challenger is being tried.
            self._log.info("compaction waits", detail=rollout.told(str(error)))
            self._retry_at = time.monotonic() + RETRY_S
        except (OnesearchError, OSError, MemoryError) as error:
            self._problem = rollout.told(str(error) or type(error).__name__)
            self._retry_at = time.monotonic() + RETRY_S
            self._log.error("compaction failed", generation=record.version, detail=self._problem)
        else:
            self._problem = ""
            self._compactions += 1
            self._log.info(
                "catalogue compacted",
                generation=made.version,
                before=record.version,
                sequence=made.catalogue_sequence,
                seconds=round(time.monotonic() - started, 3),
            )


class UpkeepCollector(Collector):
    """Reads the last look's results at each scrape: nothing is measured then."""

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep

    def collect(self) -> Iterable[Metric]:
        """Compaction, then drift where it was measured."""
        status = self._upkeep.status
        prefix = "onesearch_catalogue"
        for name, text, value in (
            ("uncompacted_changes", "Changes behind the champion's snapshot", status.pending),
            ("compaction_failed", "Whether the last compaction failed", bool(status.problem)),
        ):
            yield GaugeMetricFamily(f"{prefix}_{name}", text, value)
        yield CounterMetricFamily(
            f"{prefix}_compactions", "Generations that compactions led to", status.compactions
        )
        drift = status.drift
        if drift is None:
            return
        for name, text, value in (
            ("items", "Items added since the build, as measured", drift.items),
            ("error_ratio", "Their quantisation error to that of the build's", drift.error_ratio),
            ("code_use_ratio", "Level-1 codes they use to those expected", drift.code_use_ratio),
            ("sid_use_ratio", "SIDs they use to those expected", drift.sid_use_ratio),
            ("drifted", "Whether a threshold is passed", drift.verdict == "drifted"),
        ):
            yield GaugeMetricFamily(f"{prefix}_drift_{name}", text, value)
