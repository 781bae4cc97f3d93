"""Generations of a registry in a running server: load beside, try, promote, roll back, converge.

    verify hashes → memory → load beside the live one → golden queries → warm up → decide → flip

Only the last step changes what is served, and nothing is awaited between the decision, one line in
the registry, and the flip. Whatever fails before it leaves the live generation as it is. At most
two are in memory: one is live; the other was loaded ahead, or was live and is kept for a rollback.
Each is pinned in the registry as long as it is there.

An engine that holds one set of weights (vLLM) has its golden queries after the weights were
replaced and before the flip; when they fail, the old weights are loaded again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from structlog.typing import FilteringBoundLogger

from decoding.native.runner import Runner
from index.errors import ArtifactError, OnesearchError
from models.checkpoint import Checkpoint
from models.registry import promotion
from models.registry.aliases import Aliases
from models.registry.leases import LEASE_TTL_S, Lease
from models.registry.promotion import UNCHANGED
from models.registry.record import GenerationRecord
from models.registry.registry import Provenance, Registry
from server.choice import PIN_REASON, Registered, settings_for
from server.generation import Generation
from server.golden import Golden, read_queries, run_golden, sampled_titles
from server.memory import available_bytes, check_memory, needed_bytes
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.settings import Settings
from server.start import load_generation, start_pipeline, with_weights

KEEP_S = 600.0
"""How long the generation before the live one stays in memory."""
DRAIN_TIMEOUT_S = 70.0
"""Longer than any search may take."""
RETRY_S = 5.0
MAX_RETRY_S = 300.0
RENEW_S = LEASE_TTL_S / 3
LOADING_FAILURES = (RuntimeError, MemoryError, OSError, ValueError)
"""What torch, safetensors and the disk raise when weights cannot be had."""

Decision = Callable[[], Aliases]


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A generation in memory. `golden`: None where it was not tried. `drained`: set when its last
    search has ended, where it was live; `kept_until`: monotonic time, then too."""

    record: GenerationRecord
    generation: Generation
    lease: Lease | None = None
    golden: Golden | None = None
    seconds: float = 0.0
    drained: asyncio.Event | None = None
    kept_until: float = float("inf")

    @property
    def version(self) -> str:
        return self.record.version


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """What this server does about the registry. `alias`: of the live generation, "" for none.
    `revision`: of the aliases as last seen. `problem`: why the champion is not served, else ""."""

    generation: str
    alias: str
    revision: int
    champion: str | None
    beside: str | None
    problem: str
    promotions: int
    refusals: int


class Rollout:
    """One server's generations. Used on one event loop; files are read in threads."""

    def __init__(
        self,
        registered: Registered,
        pipeline: Pipeline,
        settings: Settings,
        log: FilteringBoundLogger,
    ) -> None:
        """`pipeline` serves what is `registered`. Raises ConfigError for golden queries that cannot
        be read."""
        choice = registered.choice
        self.registry: Registry = registered.registry
        self._pipeline = pipeline
        self._settings = settings
        self._log = log
        path = settings.golden_queries
        self._queries = None if path is None else read_queries(path)
        self._live = Loaded(choice.record, pipeline.live, registered.lease)
        self._beside: Loaded | None = None
        self._aliases = self.registry.aliases()
        self._turn = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._renewed = time.monotonic()
        self._promotions = self._refusals = 0
        self._problem, self._retry_at, self._retry_s = "", 0.0, RETRY_S
        if choice.alias != "champion":
            self._problem = self.told("; ".join(choice.problems))
            self._wait_to_retry()

    @property
    def loaded(self) -> list[Loaded]:
        """What is in memory, the live one first."""
        return [self._live] if self._beside is None else [self._live, self._beside]

    def status(self) -> RolloutStatus:
        """As of now; asks no disk."""
        aliases = self._aliases.of(self._live.version)
        return RolloutStatus(
            self._live.version,
            aliases[0] if aliases else "",
            self._aliases.revision,
            self._aliases.champion,
            None if self._beside is None else self._beside.version,
            self._problem,
            self._promotions,
            self._refusals,
        )

    def told(self, reason: str) -> str:
        """A reason without the registry's place on this machine."""
        for path in (self.registry.path.absolute(), self.registry.path):
            reason = reason.replace(f"{path}/", "")
        return reason

    async def load(self, version: str) -> Loaded:
        """Have a generation in memory, verified and tried.

        Raises ArtifactError, NotEnoughMemory; the live one serves on.
        """
        async with self._turn:
            return await self._ready(version)

    async def promote(self, version: str, by: Provenance, expected: str | None = None) -> None:
        """Load, make it champion in the registry, serve it. `expected`: the champion that the
        decision was made on. Errors as of `load`, and what `models.registry.promotion` raises."""

        def decide() -> Aliases:
            champion = UNCHANGED if expected is None else expected
            return promotion.promote(self.registry, version, expected=champion, verify=False, by=by)

        async with self._turn:
            await self._switch(version, decide)

    async def roll_back(self, version: str, by: Provenance) -> None:
        """Go from `version`, the champion, back to the one before it. Errors as of `promote`."""
        async with self._turn:
            state = await asyncio.to_thread(self.registry.aliases)
            target = state.previous
            if state.champion != version or target is None:
                reason = f"the champion is {state.champion or 'not set'}, previous is {target}"
                raise promotion.AliasMoved(f"{version} cannot be rolled back: {reason}")

            def decide() -> Aliases:
                return promotion.rollback(self.registry, expected=version, verify=False, by=by)

            await self._switch(target, decide)

    async def converge(self) -> None:
        """Serve the registry's champion, if it is not served yet: another process may have
        promoted it. What fails is told in `status`, and tried again later."""
        try:
            await self._tidy()
            state = await asyncio.to_thread(self.registry.aliases)
            if state.revision != self._aliases.revision:
                self._retry_at, self._retry_s = 0.0, RETRY_S
            elif not self._problem or time.monotonic() < self._retry_at:
                return
            async with self._turn:
                self._aliases = await asyncio.to_thread(self.registry.aliases)
                target = self._aliases.champion
                if target is None:
                    raise ArtifactError("the registry has no champion")
                if target != self._live.version:
                    await self._switch(target, None)
                self._problem, self._retry_s = "", RETRY_S
        except Exception as error:  # noqa: BLE001  whatever it is, the live one serves on
            problem = self.told(str(error) or type(error).__name__)
            if problem != self._problem or time.monotonic() >= self._retry_at:
                self._problem = problem
                self._wait_to_retry()
                self._log.error("champion not served", serving=self._live.version, detail=problem)

    async def close(self) -> None:
        """Release the pins. The pipeline closes what is live."""
        for task in self._retiring:
            task.cancel()
        await self._drop_beside()
        await self._release(self._live)

    async def _ready(self, version: str) -> Loaded:
        """In memory and tried: the live one, the one beside it, or loaded now."""
        for one in self.loaded:
            if one.version == version:
                return one
        started = time.monotonic()
        try:
            loaded = await self._load(version)
        except LOADING_FAILURES as error:
            self._refusals += 1
            raise ArtifactError(
                f"generation {version} could not be loaded: {type(error).__name__}: {error}"
            ) from error
        except OnesearchError:
            self._refusals += 1
            raise
        self._beside = loaded = replace(loaded, seconds=time.monotonic() - started)
        self._log.info("generation loaded", generation=version, seconds=round(loaded.seconds, 3))
        return loaded

    async def _load(self, version: str) -> Loaded:
        live = self._pipeline.live
        record = await asyncio.to_thread(self._verified, version, live)
        lease = await asyncio.to_thread(self._pin, version)
        try:
            await self._drop_beside()
            # The directory of a catalogue is opened by one at a time.
            await self._pipeline.settled()
            generation = await asyncio.to_thread(self._open, record, live)
            try:
                golden = await self._try(generation) if self._tries_beside else None
            except BaseException:
                await asyncio.to_thread(generation.close)
                raise
        except BaseException:
            if lease is not None:
                await asyncio.to_thread(self.registry.release, lease)
            raise
        return Loaded(record, generation, lease, golden)

    def _verified(self, version: str, live: Generation) -> GenerationRecord:
        """Hashes, of what is not loaded already, then memory. In a thread."""
        registry, hashes = self.registry, self._settings.verify
        record = registry.record(version)
        pairing = record.pairing
        known = self._has_catalogue_of(record, live)
        registry.snapshots.check(pairing.snapshot, hashes=hashes and not known)
        registry.checkpoints.check(pairing.checkpoint, hashes=hashes)
        return record

    def _open(self, record: GenerationRecord, live: Generation) -> Generation:
        """In a thread."""
        snapshot, checkpoint = self.registry.paths(record)
        pairing = record.pairing
        settings = self._settings_like(live, record)
        if not self._has_catalogue_of(record, live):
            check_memory([snapshot, checkpoint], settings.engine_device)
            generation = load_generation(settings, snapshot, checkpoint)
        else:
            if self._tries_beside:
                check_memory([checkpoint], settings.engine_device)
            opened = Checkpoint.open(checkpoint, verify=False)
            generation = with_weights(settings, live.beside(opened))
        found = (generation.snapshot_version, generation.model_version)
        if found != (record.catalogue_origin, pairing.checkpoint):
            generation.close()
            raise ArtifactError(
                f"generation {record.version} is of catalogue {record.catalogue_origin} and "
                f"checkpoint {pairing.checkpoint}, "
                f"its directories hold {found[0]} and {found[1]}; a manifest is damaged"
            )
        return generation

    def _has_catalogue_of(self, record: GenerationRecord, live: Generation) -> bool:
        """Whether the live catalogue is the one of a generation, so that it goes on with its
        changes: whatever snapshots its compactions led to. Raises ArtifactError where the live one
        lacks changes that the generation has."""
        if live.snapshot_version != record.catalogue_origin:
            return False
        if live.catalogue is None:
            # One state only: another snapshot may hold a later one.
            return record.pairing.snapshot == self._live.record.pairing.snapshot
        if record.catalogue_sequence > live.view.sequence:
            raise ArtifactError(
                f"generation {record.version} holds {record.catalogue_sequence} changes of the "
                f"catalogue, which has {live.view.sequence} here; it is of another place"
            )
        return True

    def _settings_like(self, live: Generation, record: GenerationRecord) -> Settings:
        """To open one with: "auto" is what was measured for the live one, since that cannot be
        measured under load."""
        settings = settings_for(self._settings, self.registry, record)
        if isinstance(live.runner, Runner) and settings.engine_dtype == "auto":
            name = str(live.runner.weights.layers[0].qkv.dtype).removeprefix("torch.")
            settings = settings.model_copy(update={"engine_dtype": name})
        return settings

    @property
    def _tries_beside(self) -> bool:
        """Whether the engine searches generations that are not live."""
        return self._settings.engine == "native"

    async def _try(self, generation: Generation) -> Golden:
        queries = self._queries
        if queries is None:
            queries = await asyncio.to_thread(sampled_titles, generation.view)
        return await run_golden(self._pipeline, generation, queries, self._settings.golden_floor)

    async def _switch(self, version: str, decide: Decision | None) -> None:
        """Serve a generation. `decide` writes the decision; None: others have."""
        started, old = time.monotonic(), self._live
        loaded = await self._ready(version)
        state: Aliases | None = None

        async def before() -> None:
            nonlocal state, loaded
            if loaded.golden is None and loaded.drained is None:
                loaded = replace(loaded, golden=await self._try(loaded.generation))
            if decide is not None:
                state = await asyncio.to_thread(decide)

        if loaded is old:
            if decide is not None:
                state = await asyncio.to_thread(decide)
        else:
            try:
                drained = await self._pipeline.promote(loaded.generation, before)
            except OnesearchError:
                self._refusals += 1
                raise
            self._live = replace(
                loaded, generation=self._pipeline.live, drained=None, kept_until=float("inf")
            )
            self._beside = None
            self._promotions += 1
            self._retire(replace(old, drained=drained))
            self._log.info(
                "generation promoted",
                generation=version,
                before=old.version,
                seconds=round(time.monotonic() - started, 3),
            )
        if state is not None:
            self._aliases, self._problem = state, ""

    def _retire(self, old: Loaded) -> None:
        """Keep the generation before the live one for a rollback, if it can be and fits."""
        generation = old.generation
        shares = generation.source is self._live.generation.source
        if (shares or generation.catalogue is None) and self._has_room_for(old):
            self._beside = replace(old, kept_until=time.monotonic() + KEEP_S)
            return
        task = asyncio.get_running_loop().create_task(self._end(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _has_room_for(self, old: Loaded) -> bool:
        """Whether as much again as it takes is free."""
        if not self._tries_beside:
            return True
        _, checkpoint = self.registry.paths(old.record)
        try:
            need = needed_bytes([checkpoint])
        except OSError:
            return False
        return available_bytes(self._settings.engine_device) > need

    async def _tidy(self) -> None:
        """Let go of what was kept long enough, and renew the pins."""
        now = time.monotonic()
        if self._beside is not None and now >= self._beside.kept_until:
            async with self._turn:
                await self._drop_beside()
        if now >= self._renewed + RENEW_S:
            self._renewed = now
            async with self._turn:
                self._live = await self._renew(self._live)
                if self._beside is not None:
                    self._beside = await self._renew(self._beside)

    async def _drop_beside(self) -> None:
        beside, self._beside = self._beside, None
        if beside is not None:
            await self._end(beside)

    async def _end(self, loaded: Loaded) -> None:
        """Let go of a generation that is not live, once its last search has ended."""
        if loaded.drained is not None:
            try:
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await loaded.drained.wait()
            except TimeoutError:
                self._log.error("generation not drained", generation=loaded.version)
            self._live.generation.stand_alone()
        else:
            await asyncio.to_thread(loaded.generation.close)
        await self._release(loaded)

    async def _release(self, loaded: Loaded) -> None:
        if loaded.lease is not None:
            await asyncio.to_thread(self.registry.release, loaded.lease)

    async def _renew(self, loaded: Loaded) -> Loaded:
        """The same, pinned for longer; pinned anew where the pin was lost."""
        lease = loaded.lease
        try:
            if lease is not None:
                lease = await asyncio.to_thread(self.registry.renew, lease)
        except ArtifactError as error:
            self._log.warning("pin lost", generation=loaded.version, detail=str(error))
            lease = await asyncio.to_thread(self._pin, loaded.version) or lease
        return replace(loaded, lease=lease)

    def _pin(self, version: str) -> Lease | None:
        """None where the registry takes no pins. In a thread."""
        try:
            return self.registry.pin(version, PIN_REASON)
        except ArtifactError as error:
            self._log.warning("generation not pinned", generation=version, detail=str(error))
            return None

    def _wait_to_retry(self) -> None:
        self._retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)


async def start_rollout(
    settings: Settings, registered: Registered, metrics: Metrics, log: FilteringBoundLogger
) -> tuple[Pipeline, Rollout]:
    """Serve a registry's generation: `start_pipeline`, and what follows the registry.

    Raises as `start_pipeline` does, and ConfigError for golden queries that cannot be read.
    """
    choice = registered.choice
    if choice.problems:
        log.error(
            "registry damaged",
            serving=choice.alias,
            generation=choice.record.version,
            problems=list(choice.problems),
        )
    if registered.lease is None:
        log.warning("generation not pinned", detail=registered.unpinned)
    own = settings_for(settings, registered.registry, choice.record)
    pipeline = await start_pipeline(own, choice.snapshot, choice.checkpoint, metrics, log)
    try:
        return pipeline, Rollout(registered, pipeline, settings, log)
    except BaseException:
        await pipeline.close()
        raise
