"""Takes back what serves clearly worse: a promotion is rolled back, a canary stopped.

Several servers on one registry judge for themselves, each by its own searches. The registry's
change is made once: it names the generation that it takes back, and who comes later finds that it
is not champion, or not in a canary, any more. A trial outlives a restart of its server: what it is
judged by is kept in the registry. What was taken back is promoted again by people only: a rollback
is not on trial, and a server that would read an older state of the registry, because the newest one
is damaged, does not follow it back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict

from structlog.typing import FilteringBoundLogger

from index.errors import ArtifactError, DataError
from models.registry.aliases import Aliases
from models.registry.canary import NoCanary
from models.registry.process import whoami
from models.registry.promotion import AliasMoved
from models.registry.registry import Provenance, Registry
from server.canary import Challenger
from server.figures import Figures, Sample
from server.rollout_loading import Loaded
from server.rollout_retry import RETRY_S
from server.rollout_status import Action, Condemned
from server.rollout_trial import Trial, TrialStatus
from server.rollout_verdict import Verdict
from server.settings import Settings

AUTOMATIC = "onesearch serve, by itself"

Act = Callable[[str, Provenance], Awaitable[None]]
"""Takes a generation back in the registry and here."""


class Guard:
    """Of one server. Used on one event loop."""

    def __init__(
        self,
        registry: Registry,
        figures: Figures,
        settings: Settings,
        log: FilteringBoundLogger,
        told: Callable[[str], str],
    ) -> None:
        """`told`: a reason as others may read it."""
        self._registry = registry
        self._figures = figures
        self._settings = settings
        self._log = log
        self._told = told
        self._trial: Trial | None = None
        self._unkept: tuple[int, Sample] | None = None
        """The revision that a trial began with, and what it is judged by."""
        self._revisions: dict[str, int] = {}
        """Generation → the revision that took it back."""
        self.condemned: Condemned | None = None
        self.rollbacks = self.stops = 0

    @property
    def trial(self) -> TrialStatus | None:
        """Of what was promoted."""
        return None if self._trial is None else self._trial.status()

    def begin(self, live: Loaded, old: Loaded, before: Sample, state: Aliases) -> None:
        """`live` is served in place of `old`: it is on trial, unless that took something back."""
        trial, self._trial = self._trial, None
        if trial is not None and trial.version == old.version:
            same = live.generation.parts == old.generation.parts
            if same and state.previous == trial.against:
                # Its catalogue was compacted: the same weights go on under another name.
                trial.version, self._trial = live.version, trial
                return
        forward = state.what != "rollback" and state.champion == live.version
        if forward and state.previous == old.version and self._settings.rollback_window_s > 0:
            self._trial = Trial.after_promotion(
                (live.version, old.version),
                live.generation.parts,
                before,
                self._figures,
                self._settings,
            )
            self._unkept = (state.revision, before)

    async def keep(self) -> None:
        """Write down what a trial that has begun is judged by, in case of a restart."""
        unkept, self._unkept = self._unkept, None
        if unkept is None:
            return
        revision, before = unkept

        def write() -> None:
            with self._registry.writing():
                self._registry.trials.keep(revision, before.summary())

        try:
            await asyncio.to_thread(write)
        except ArtifactError as error:
            self._log.warning("trial not kept", detail=self._told(str(error)))

    async def resume(self, live: Loaded) -> None:
        """Go on with the trial of the champion that this server starts with, if its window has not
        passed and what it is compared with was kept."""
        window_s = self._settings.rollback_window_s
        found = await asyncio.to_thread(self._kept, live.version) if window_s > 0 else None
        if found is None:
            return
        state, before = found
        left_s = min(window_s, state.when + window_s - time.time())
        if state.previous is None or left_s <= 0:
            return
        self._trial = Trial.after_promotion(
            (live.version, state.previous),
            live.generation.parts,
            before,
            self._figures,
            self._settings,
            left_s,
        )
        self._log.info("trial resumed", generation=live.version, seconds_left=round(left_s, 1))

    def _kept(self, version: str) -> tuple[Aliases, Sample] | None:
        """How a champion came to be one, and what its predecessor did before. In a thread."""
        state = self._registry.alias_history.promotion_of(version)
        if state is None or state.what == "rollback":
            return None
        body = self._registry.trials.read(state.revision)
        try:
            return None if body is None else (state, Sample.of_summary(body))
        except DataError as error:
            self._log.warning("trial not resumed", detail=str(error))
            return None

    async def judge(self, roll_back: Act) -> bool:
        """Roll back what is on trial and clearly worse; whether that was done, here."""
        trial = self._trial
        if trial is not None and trial.is_over:
            self._log.info("generation kept", generation=trial.version)
            self._trial = trial = None
        verdict = None if trial is None else await trial.look()
        if trial is None or verdict is None:
            return False
        done = await self._take_back("rollback", trial.version, verdict, roll_back)
        self.rollbacks += done
        if self._trial is trial:
            trial.wait(RETRY_S)
        return done

    async def judge_canary(self, challenger: Challenger, stop: Act) -> None:
        """Stop a canary that is clearly worse than the champion."""
        version, verdict = challenger.version, await challenger.look()
        if version is not None and verdict is not None:
            self.stops += await self._take_back("canary-stop", version, verdict, stop)
            challenger.wait(RETRY_S)

    def remember(self, revision: int) -> None:
        """The last one that was taken back was so by this revision of the aliases."""
        if self.condemned is not None:
            self._revisions[self.condemned.generation] = revision

    def took_back(self, version: str, revision: int) -> bool:
        """Whether that was done after a revision that has it champion."""
        return revision <= self._revisions.get(version, -1)

    async def _take_back(self, action: Action, version: str, verdict: Verdict, act: Act) -> bool:
        """Do it, and tell it. False where it was not done here: others were faster, which the next
        look at the registry shows, or it failed and is tried again."""
        by, problem = Provenance(f"{AUTOMATIC} ({whoami()})", str(verdict)), ""
        try:
            await act(version, by)
        except (AliasMoved, NoCanary) as error:
            self._log.info("worse, and taken back by others", generation=version, detail=str(error))
            return False
        except Exception as error:  # noqa: BLE001  it serves on
            problem = self._told(str(error) or type(error).__name__)
        self.condemned = Condemned(action, version, verdict, time.time(), problem)
        facts = {"action": action, "generation": version, **asdict(verdict)}
        self._log.error("generation is worse", **facts, detail=str(verdict), problem=problem)
        if not problem:
            try:
                await asyncio.to_thread(self._registry.note, "verdict", by, **facts)
            except ArtifactError as error:
                self._log.warning("event not written", detail=self._told(str(error)))
        return not problem
