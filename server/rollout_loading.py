"""Brings a registry's generation into memory beside the live one, and lets go of it again.

    verify hashes → pin → memory → open → golden queries

Whatever fails leaves nothing behind. What is in memory is pinned in the registry.

Searches have the processors first: files are hashed, and weights loaded, in a thread that has what
they leave. A catalogue is opened in another, as its own threads inherit their priority.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from decoding.native.runner import Runner
from index.errors import ArtifactError
from models.checkpoint import Checkpoint
from models.registry.leases import Lease
from models.registry.record import GenerationRecord
from models.registry.registry import Registry
from server.choice import PIN_REASON, settings_for
from server.generation import Generation
from server.golden import Golden, read_queries, run_golden, sampled_titles
from server.laps import Laps
from server.memory import available_bytes, check_memory, needed_bytes
from server.pipeline import Pipeline
from server.settings import Settings
from server.start import load_generation, with_weights

LOADING_FAILURES = (RuntimeError, MemoryError, OSError, ValueError)
"""What torch, safetensors and the disk raise when weights cannot be had."""
DRAIN_TIMEOUT_S = 70.0
"""Longer than any search may take."""
NICENESS = 10
"""About a tenth of a processor where searches want all of it."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A generation in memory. `golden`: None where it was not tried. `drained`: set when its last
    search has ended, where it was live or challenger; `kept_until`: monotonic time, then too.
    `was_live`: the pipeline closes its catalogue."""

    record: GenerationRecord
    generation: Generation
    lease: Lease | None = None
    golden: Golden | None = None
    seconds: float = 0.0
    drained: asyncio.Event | None = None
    kept_until: float = float("inf")
    was_live: bool = False

    @property
    def version(self) -> str:
        return self.record.version


class Loading:
    """Loads for one server. Used on one event loop, by one at a time; files are read in threads."""

    def __init__(
        self,
        registry: Registry,
        pipeline: Pipeline,
        settings: Settings,
        log: FilteringBoundLogger,
        laps: Laps | None = None,
    ) -> None:
        """Raises ConfigError for golden queries that cannot be read."""
        self._registry = registry
        self._pipeline = pipeline
        self._settings = settings
        self._log = log
        self._laps = laps or Laps()
        # Measured for the live one, since that cannot be measured under load.
        runner = pipeline.live.runner
        self._dtype: str | None = None
        if isinstance(runner, Runner):
            self._dtype = str(runner.weights.layers[0].qkv.dtype).removeprefix("torch.")
        self._aside = ThreadPoolExecutor(1, "onesearch-loading", initializer=_give_way)
        path = settings.golden_queries
        self._queries = None if path is None else read_queries(path)

    @property
    def tries_beside(self) -> bool:
        """Whether the engine searches generations that are not live."""
        return self._settings.engine == "native"

    async def load(self, version: str, live: Loaded) -> Loaded:
        """A generation, verified, pinned, opened, and tried where the engine can before it is live.

        Raises ArtifactError, NotEnoughMemory.
        """
        try:
            return await self._load(version, live)
        except LOADING_FAILURES as error:
            raise ArtifactError(
                f"generation {version} could not be loaded: {type(error).__name__}: {error}"
            ) from error

    async def verify_loaded(self, version: str, loaded: Sequence[Loaded]) -> None:
        """Read again on the disk what a generation has in memory already, so that `load` does not:
        a champion is what a restart can serve. Raises ArtifactError naming the file."""
        await self._in_the_background(lambda: self._verify_loaded(version, loaded))

    async def golden(self, generation: Generation, *, beside: bool = True) -> Golden:
        """Ask the golden queries; `beside` searches, or while these wait. Raises ArtifactError."""
        queries = self._queries
        if queries is None:
            queries = await asyncio.to_thread(sampled_titles, generation.view)
        floor = self._settings.golden_floor
        return await run_golden(self._pipeline, generation, queries, floor, beside=beside)

    def open(self, record: GenerationRecord, live: Loaded) -> Generation:
        """Open what is verified, if there is memory for it. In a thread."""
        serving = live.generation
        snapshot, checkpoint = self._registry.paths(record)
        settings = self._settings_like(record)
        if not _has_catalogue_of(record, live):
            check_memory([snapshot, checkpoint], settings.engine_device)
            generation = load_generation(settings, snapshot, checkpoint, serving.nursery)
        else:
            if self.tries_beside:
                check_memory([checkpoint], settings.engine_device)
            opened = Checkpoint.open(checkpoint, verify=False)
            generation = with_weights(settings, serving.beside(opened))
        found = (generation.snapshot_version, generation.model_version)
        if found != (record.catalogue_origin, record.pairing.checkpoint):
            generation.close()
            raise ArtifactError(
                f"generation {record.version} is of catalogue {record.catalogue_origin} and "
                f"checkpoint {record.pairing.checkpoint}, "
                f"its directories hold {found[0]} and {found[1]}; a manifest is damaged"
            )
        return generation

    def with_weights_again(self, live: Loaded) -> Generation:
        """What is live with its weights, which were dropped. In a thread. Raises ArtifactError."""
        settings = self._settings_like(live.record)
        try:
            return with_weights(settings, live.generation.beside(live.generation.checkpoint))
        except LOADING_FAILURES as error:
            raise ArtifactError(
                f"the weights of {live.version} could not be loaded again: {error}"
            ) from error

    def has_room_for(self, loaded: Loaded) -> bool:
        """Whether as much again as its weights take is free."""
        if not self.tries_beside:
            return True
        _, checkpoint = self._registry.paths(loaded.record)
        try:
            need = needed_bytes([checkpoint])
        except OSError:
            return False
        return available_bytes(self._settings.engine_device) > need

    async def end(self, loaded: Loaded, live: Loaded) -> None:
        """Let go of a generation that is not `live`, once its last search has ended."""
        generation = loaded.generation
        if loaded.drained is not None:
            try:
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await loaded.drained.wait()
            except TimeoutError:
                self._log.error("generation not drained", generation=loaded.version)
        if generation.source is live.generation.source:
            live.generation.stand_alone()
        elif not loaded.was_live:
            await asyncio.to_thread(generation.close)
        await self.release(loaded)

    async def release(self, loaded: Loaded) -> None:
        """End its pin."""
        if loaded.lease is not None:
            await asyncio.to_thread(self._registry.release, loaded.lease)

    async def renew(self, loaded: Loaded) -> Loaded:
        """The same, pinned for longer; pinned anew where the pin was lost."""
        lease = loaded.lease
        try:
            if lease is not None:
                lease = await asyncio.to_thread(self._registry.renew, lease)
        except ArtifactError as error:
            self._log.warning("pin lost", generation=loaded.version, detail=str(error))
            lease = await asyncio.to_thread(self._pin, loaded.version) or lease
        return replace(loaded, lease=lease)

    async def _load(self, version: str, live: Loaded) -> Loaded:
        started = time.monotonic()
        self._laps.lap("prepare")
        record = await self._in_the_background(lambda: self._verified(version, live))
        self._laps.lap("verify")
        lease = await asyncio.to_thread(self._pin, version)
        try:
            # The directory of a catalogue is opened by one at a time.
            await self._pipeline.settled()
            if _has_catalogue_of(record, live):
                generation = await self._in_the_background(lambda: self.open(record, live))
            else:
                generation = await asyncio.to_thread(self.open, record, live)
            self._laps.lap("open")
            try:
                golden = await self.golden(generation) if self.tries_beside else None
                self._laps.lap("golden")
            except BaseException:
                await asyncio.to_thread(generation.close)
                raise
        except BaseException:
            if lease is not None:
                await asyncio.to_thread(self._registry.release, lease)
            raise
        return Loaded(record, generation, lease, golden, time.monotonic() - started)

    async def _in_the_background(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._aside, work)

    def close(self) -> None:
        """Load no more."""
        self._aside.shutdown(wait=False)

    def _verified(self, version: str, live: Loaded) -> GenerationRecord:
        """Hashes, of what is not loaded already. In a thread."""
        hashes = self._settings.verify
        record = self._registry.record(version)
        known = _has_catalogue_of(record, live)
        self._registry.snapshots.check(record.pairing.snapshot, hashes=hashes and not known)
        self._registry.checkpoints.check(record.pairing.checkpoint, hashes=hashes)
        return record

    def _verify_loaded(self, version: str, loaded: Sequence[Loaded]) -> None:
        hashes, registry = self._settings.verify, self._registry
        pairing = registry.record(version).pairing
        known = [one.record.pairing for one in loaded]
        if pairing.snapshot in {one.snapshot for one in known}:
            registry.snapshots.check(pairing.snapshot, hashes=hashes)
        if pairing.checkpoint in {one.checkpoint for one in known}:
            registry.checkpoints.check(pairing.checkpoint, hashes=hashes)

    def _settings_like(self, record: GenerationRecord) -> Settings:
        """To open one with: "auto" is what the first one is computed in."""
        settings = settings_for(self._settings, self._registry, record)
        if self._dtype is not None and settings.engine_dtype == "auto":
            settings = settings.model_copy(update={"engine_dtype": self._dtype})
        return settings

    def _pin(self, version: str) -> Lease | None:
        """None where the registry takes no pins. In a thread."""
        try:
            return self._registry.pin(version, PIN_REASON)
        except ArtifactError as error:
            self._log.warning("generation not pinned", generation=version, detail=str(error))
            return None


def _give_way() -> None:
    """Let this thread have what others leave of the processors."""
    # Elsewhere it would be the whole process.
    if sys.platform == "linux":
        os.nice(NICENESS)


def _has_catalogue_of(record: GenerationRecord, live: Loaded) -> bool:
    """Whether the live catalogue is the one of a generation, so that it goes on with its changes:
    whatever snapshots its compactions led to. Raises ArtifactError where the live one lacks changes
    that the generation has."""
    serving = live.generation
    if serving.snapshot_version != record.catalogue_origin:
        return False
    if serving.catalogue is None:
        # One state only: another snapshot may hold a later one.
        return record.pairing.snapshot == live.record.pairing.snapshot
    if record.catalogue_sequence > serving.view.sequence:
        raise ArtifactError(
            f"generation {record.version} holds {record.catalogue_sequence} changes of the "
            f"catalogue, which has {serving.view.sequence} here; it is of another place"
        )
    return True
