"""Generations of a registry in a running server: load beside, try, promote, roll back, converge.

    verify hashes → memory → load beside the live one → golden queries → warm up → decide → flip

Only the last step changes what is served, and nothing is awaited between the decision, one line in
the registry, and the flip. Whatever fails before it leaves the live generation as it is. At most
two are in memory: one is live; the other was loaded ahead, is the challenger, or was live and is
kept for a rollback. Each is pinned in the registry as long as it is there.

An engine that holds one set of weights (vLLM) has its golden queries after the weights were
replaced and before the flip; when they fail, the old weights are loaded again. So has the native
one where memory is short and the settings let weights be replaced in place.

What was promoted is on trial for a while, and a canary as long as it lasts; one that is clearly
worse is taken back, once, whichever of several servers sees it first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from structlog.typing import FilteringBoundLogger

from index.errors import ArtifactError, ConfigError, OnesearchError
from models.registry import promotion
from models.registry.aliases import Aliases
from models.registry.canary import check_no_other, start_canary, stop_canary
from models.registry.promotion import UNCHANGED
from models.registry.registry import Provenance, Registry
from server.canary import ONE_SET_OF_WEIGHTS, Challenger
from server.choice import Registered
from server.figures import Outcome
from server.laps import Laps
from server.memory import NotEnoughMemory
from server.pipeline import Pipeline
from server.rollout_decisions import Decisions
from server.rollout_guard import Guard
from server.rollout_loading import Loaded, Loading
from server.rollout_places import Places
from server.rollout_replacement import Replacement
from server.rollout_retry import Retry
from server.rollout_status import RolloutStatus
from server.settings import Settings

Decision = Callable[[], Aliases]


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
        self._laps = Laps()
        self._loading = Loading(self.registry, pipeline, settings, log, self._laps)
        self._challenger = Challenger(self.registry, pipeline, settings, log)
        live = Loaded(choice.record, pipeline.live, registered.lease)
        self._places = Places(live, self._loading)
        self._aliases = self.registry.aliases()
        self._turn = asyncio.Lock()
        self._promotions = self._refusals = 0
        self._problem, self._retry, self._challenger_retry = "", Retry(), Retry()
        self._guard = Guard(self.registry, pipeline.figures, settings, log, self.told)
        self._decisions = Decisions(self.registry, self._guard, self._retry.reset)
        if choice.alias != "champion":
            self._problem = self.told("; ".join(choice.problems))
            self._retry.wait()

    @property
    def loaded(self) -> list[Loaded]:
        """What is in memory, the live one first."""
        return self._places.loaded

    @property
    def _live(self) -> Loaded:
        return self._places.live

    def status(self) -> RolloutStatus:
        """As of now; asks no disk."""
        aliases = self._aliases.of(self._live.version)
        guard, trials = self._guard, (self._guard.trial, self._challenger.trial)
        return RolloutStatus(
            self._live.version,
            aliases[0] if aliases else "",
            self._aliases.revision,
            self._aliases.champion,
            None if self._places.beside is None else self._places.beside.version,
            self._problem,
            self._promotions,
            self._refusals,
            self._challenger.status(self._aliases),
            tuple(trial for trial in trials if trial is not None),
            self._challenger.shadow,
            guard.condemned,
            guard.rollbacks,
            guard.stops,
        )

    @property
    def last_change_ms(self) -> Mapping[str, float]:
        """Parts of the last change of what is served: verify, open, golden, warm_up, decide, flip;
        "open" and "golden" are missing for what was in memory."""
        return self._laps.parts_ms

    def arms(self) -> Mapping[tuple[str, Outcome], int]:
        """Searches of canaries since the start, by arm and outcome."""
        return self._pipeline.figures.counts

    def told(self, reason: str) -> str:
        """A reason without the registry's place on this machine."""
        for path in (self.registry.path.absolute(), self.registry.path):
            reason = reason.replace(f"{path}/", "").replace(f" {path} ", " ")
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
        champion = UNCHANGED if expected is None else expected
        decide = partial(promotion.promote, self.registry, version, expected=champion, by=by)
        async with self._turn:
            await self._switch(version, partial(decide, verify=False), again=True)

    async def roll_back(self, version: str, by: Provenance) -> None:
        """Go from `version`, the champion, back to the one before it. Errors as of `promote`."""
        async with self._turn:
            state = await asyncio.to_thread(self.registry.aliases)
            target = state.previous
            if state.champion != version or target is None:
                reason = f"the champion is {state.champion or 'not set'}, previous is {target}"
                raise promotion.AliasMoved(f"{version} cannot be rolled back: {reason}")
            decide = partial(promotion.rollback, self.registry, expected=version, by=by)
            await self._switch(target, partial(decide, verify=False))

    async def canary(
        self,
        version: str,
        share: float,
        experiment: str,
        by: Provenance,
        expected: str | None = None,
        expected_challenger: str | None = None,
    ) -> None:
        """Let a generation answer a share of the users: load it, then say so in the registry.
        `expected_challenger`: whose canary this may end. Errors as of `promote`, CanaryRuns for one
        that is not named, ConfigError for a share or a name that cannot be, and where the engine
        holds one set of weights."""
        if not self._loading.tries_beside:
            raise ConfigError(ONE_SET_OF_WEIGHTS)
        challenger = UNCHANGED if expected_challenger is None else expected_challenger
        async with self._turn:
            state = await asyncio.to_thread(self.registry.aliases)
            # Before anything gives way.
            check_no_other(state, version, challenger)
            if version != self._live.version:
                await self._make_way_for(version)
                await self._ready(version)
            self._aliases = await asyncio.to_thread(
                start_canary,
                self.registry,
                version,
                share,
                experiment=experiment,
                expected=UNCHANGED if expected is None else expected,
                expected_challenger=challenger,
                verify=False,
                by=by,
            )
            await self._seat(self._challenger.wanted(self._aliases, self._live.version))

    async def stop_canary(self, version: str, by: Provenance) -> None:
        """Everybody is answered by the champion again; `version` stays challenger. Raises
        AliasMoved where it is not, NoCanary."""
        async with self._turn:
            self._aliases = await asyncio.to_thread(
                stop_canary, self.registry, expected=version, by=by
            )
            await self._seat(self._challenger.wanted(self._aliases, self._live.version))

    async def converge(self) -> None:
        """Serve the registry's champion and its canary, if they are not served yet: another process
        may have changed them. What fails is told in `status`, and tried again later. What is served
        and clearly worse is taken back."""
        try:
            if self._places.is_overdue:
                async with self._turn:
                    await self._places.tidy()
            await self._follow_champion()
        except Exception as error:  # noqa: BLE001  whatever it is, the live one serves on
            problem = self.told(str(error) or type(error).__name__)
            if problem != self._problem or self._retry.is_due:
                self._problem = problem
                self._retry.wait()
                self._log.error("champion not served", serving=self._live.version, detail=problem)
        try:
            await self._follow_challenger()
        except Exception as error:  # noqa: BLE001  as above
            self._challenger.problem = self.told(str(error) or type(error).__name__)
            self._challenger_retry.wait()
            self._log.error("challenger not served", detail=self._challenger.problem)
        if await self._guard.judge(self.roll_back):
            self._guard.remember(self._aliases.revision)
        await self._guard.judge_canary(self._challenger, self.stop_canary)
        await self._guard.keep()

    async def resume(self) -> None:
        """Go on where a server before this one was stopped."""
        if self._aliases.champion == self._live.version:
            await self._guard.resume(self._live)

    async def close(self) -> None:
        """Release the pins. The pipeline closes what is live."""
        if self._challenger.version is not None:
            await self._unseat()
        await self._places.close()
        self._loading.close()

    async def _follow_champion(self) -> None:
        state = await self._decisions.read(self._aliases, self._live.version)
        if state.revision != self._aliases.revision:
            self._retry.reset()
            self._challenger_retry.reset()
        elif self._problem:
            if not self._retry.is_due:
                return
        elif state.champion == self._live.version:
            # Known is not served: others may promote while this server loads its first generation.
            return
        async with self._turn:
            self._aliases = await self._decisions.read(self._aliases, self._live.version)
            target = self._aliases.champion
            if target is None:
                raise ArtifactError("the registry has no champion")
            self._decisions.check_not_taken_back(self._aliases)
            if target != self._live.version:
                await self._switch(target, None)
            elif not self._pipeline.has_weights:
                await self._replacement().refill()
            self._problem = ""
            self._retry.reset()

    async def _follow_challenger(self) -> None:
        wanted = self._challenger.wanted(self._aliases, self._live.version)
        if wanted == self._challenger.version:
            self._challenger.follow(self._aliases.canary)
        elif wanted is None or self._challenger_retry.is_due:
            async with self._turn:
                await self._seat(self._challenger.wanted(self._aliases, self._live.version))

    async def _seat(self, wanted: str | None) -> None:
        """Have this challenger, and no other, beside the live one."""
        challenger = self._challenger
        if challenger.version is not None and wanted != challenger.version:
            await self._unseat()
        if wanted is not None and challenger.version is None:
            loaded = await self._ready(wanted)
            generation = await challenger.come(wanted, loaded.generation, self._live.version)
            self._places.stay(loaded, generation)
        challenger.follow(self._aliases.canary)

    async def _unseat(self) -> None:
        """End the challenge; the generation stays in memory for a while."""
        self._places.may_go(await self._challenger.leave())

    async def _make_way_for(self, version: str) -> None:
        """A challenger leaves when another generation is to be loaded: two are in memory."""
        if self._challenger.version not in (None, version):
            await self._unseat()

    async def _ready(self, version: str) -> Loaded:
        """In memory and tried: the live one, the one beside it, or loaded now."""
        known = self._places.find(version)
        if known is not None:
            return known
        if self._challenger.version is not None:
            raise ArtifactError(
                f"challenger {self._challenger.version} is in memory beside the champion, and only "
                "two generations are; stop its canary first"
            )
        try:
            loaded = await self._places.bring(version)
        except OnesearchError as error:
            self._refusals += not (isinstance(error, NotEnoughMemory) and self._replaces)
            raise
        self._log.info("generation loaded", generation=version, seconds=round(loaded.seconds, 3))
        return loaded

    async def _switch(self, version: str, decide: Decision | None, *, again: bool = False) -> None:
        """Serve a generation. `decide` writes the decision; None: others have. `again`: read on the
        disk what is in memory, too."""
        started, old, state = time.monotonic(), self._live, None
        self._laps.begin()
        if again:
            try:
                await self._loading.verify_loaded(version, self._places.loaded)
            except ArtifactError:
                self._refusals += 1
                raise
            self._laps.lap("verify")
        if version == old.version:
            if decide is not None:
                self._decided(await asyncio.to_thread(decide))
            return
        await self._make_way_for(version)
        before = self._pipeline.figures.last(old.generation.parts, self._settings.rollback_window_s)
        try:
            loaded = await self._ready(version)
        except NotEnoughMemory as error:
            if not self._replaces:
                raise
            self._log.warning("weights replaced in place", generation=version, detail=str(error))
            try:
                loaded, drained, state = await self._replacement().replace(version, decide)
            except BaseException:
                self._refusals += 1
                if not self._pipeline.has_weights:
                    self._problem = f"the weights of {old.version} could not be loaded again"
                raise
        else:
            loaded, drained, state = await self._flip(loaded, decide)
        self._places.succeed(loaded, self._pipeline.live, drained)
        self._promotions += 1
        if state is not None:
            self._decided(state)
        self._guard.begin(self._live, old, before, self._aliases)
        self._log.info(
            "generation promoted",
            generation=version,
            before=old.version,
            seconds=round(time.monotonic() - started, 3),
        )
        if self._challenger.version == version:
            await self._challenger.gone()

    async def _flip(
        self, loaded: Loaded, decide: Decision | None
    ) -> tuple[Loaded, asyncio.Event, Aliases | None]:
        state: Aliases | None = None

        async def before() -> None:
            nonlocal state, loaded
            if loaded.golden is None and loaded.drained is None:
                golden = await self._loading.golden(loaded.generation, beside=False)
                loaded = replace(loaded, golden=golden)
                self._laps.lap("golden")
            if decide is not None:
                state = await asyncio.to_thread(decide)
            self._laps.lap("decide")

        try:
            drained = await self._pipeline.promote(loaded.generation, before, self._laps)
        except OnesearchError:
            self._refusals += 1
            raise
        return loaded, drained, state

    @property
    def _replaces(self) -> bool:
        """Whether weights may be replaced in place, where vLLM does that anyway."""
        short = self._settings.when_memory_is_short
        return short == "replace" and self._loading.tries_beside

    def _replacement(self) -> Replacement:
        return Replacement(self._loading, self._pipeline, self._live)

    def _decided(self, state: Aliases) -> None:
        self._aliases, self._problem = state, ""
        if state.unsynced:
            self._log.warning("decision not synced", detail=self.told(state.unsynced))
