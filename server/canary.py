"""The registry's challenger in this server: it answers its arm of the canary, and is compared.

It is loaded where a canary gives it users, or where searches are compared in the shadow. While it
is not there, for whatever reason, everybody is answered by the champion, no answer names an arm,
and the status says why.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from structlog.typing import FilteringBoundLogger

from index.errors import ArtifactError
from models.registry.aliases import Aliases, Canary
from models.registry.registry import Provenance, Registry
from server.experiment.assignment import Arm, Experiment
from server.generation import CHALLENGER, CHAMPION, Generation
from server.pipeline import Pipeline
from server.rollout_trial import Trial, TrialStatus
from server.rollout_verdict import Verdict
from server.settings import Settings
from server.shadow import Shadow, ShadowFigures

ONE_SET_OF_WEIGHTS = (
    "this engine holds one set of weights and cannot answer from two generations; serve a canary "
    "with engine = native"
)
NOT_THE_CHAMPION = "what is served is not the champion, so there is nothing to compare with"


@dataclass(frozen=True, slots=True)
class CanaryStatus:
    """The registry's canary. `served`: whether this server gives the challenger its share;
    `problem`: why not, else ""."""

    experiment: str
    generation: str
    share: float
    served: bool
    problem: str


class Challenger:
    """Its place in the pipeline. Used on one event loop, changed by one at a time."""

    def __init__(
        self,
        registry: Registry,
        pipeline: Pipeline,
        settings: Settings,
        log: FilteringBoundLogger,
    ) -> None:
        self._registry = registry
        self._pipeline = pipeline
        self._settings = settings
        self._log = log
        self._canary: Canary | None = None
        self._champion = ""
        self._trial: Trial | None = None
        self._shadow: Shadow | None = None
        self.version: str | None = None
        """What is there; None for nothing."""
        self.problem = ""
        """Why what is wanted is not there."""

    def wanted(self, aliases: Aliases, live: str) -> str | None:
        """The generation that should be there; None for none, or where it cannot be."""
        compared = self._settings.shadow_share > 0
        if aliases.challenger is None or (aliases.canary is None and not compared):
            self.problem = ""
            return None
        if self._settings.engine != "native":
            self.problem = ONE_SET_OF_WEIGHTS
            return None
        if aliases.champion != live:
            self.problem = NOT_THE_CHAMPION
            return None
        return aliases.challenger

    async def come(self, version: str, generation: Generation, champion: str) -> Generation:
        """Put a loaded generation beside `champion`, which is live; gives it back as it is then."""
        generation = await self._pipeline.challenge(generation)
        self.version, self._champion, self.problem = version, champion, ""
        if self._settings.shadow_share > 0:
            self._shadow = Shadow(
                lambda: self._pipeline.live,
                generation,
                self._settings.shadow_share,
                self._pipeline.try_out,
                self._is_idle,
                self._log,
            )
            self._pipeline.shadow = self._shadow
        return generation

    def follow(self, canary: Canary | None) -> None:
        """Give it the share that the registry says, if it is there and that has changed."""
        if self.version is None or canary == self._canary:
            return
        self._canary = canary
        if canary is None:
            self._pipeline.assign(None)
            self._trial = None
            self._log.info("canary ended", generation=self.version)
            return
        self._pipeline.assign(experiment_of(canary))
        self._log.info("canary", generation=self.version, **asdict(canary))
        challenger = self._pipeline.challenger
        assert challenger is not None
        if self._settings.rollback_window_s > 0:
            self._trial = Trial.of_canary(
                (self.version, self._champion),
                challenger.parts,
                self._pipeline.live.parts,
                self._pipeline.figures,
                self._settings,
            )

    async def leave(self) -> asyncio.Event:
        """Take it away. The event is set when its last search has ended."""
        drained = self._pipeline.unchallenge()
        await self.gone()
        return drained

    async def gone(self) -> None:
        """It was promoted, or taken away: nothing is compared any more."""
        version, self.version, self._canary, self._trial = self.version, None, None, None
        shadow, self._shadow, self._pipeline.shadow = self._shadow, None, None
        if shadow is None or version is None:
            return
        await shadow.close()
        if not shadow.figures.compared:
            return
        facts = shadow_facts(shadow.figures)
        self._log.info("shadow", generation=version, **facts)
        try:
            await asyncio.to_thread(
                self._registry.note,
                "shadow",
                Provenance(),
                generation=version,
                champion=self._champion,
                **facts,
            )
        except ArtifactError as error:
            self._log.warning("event not written", detail=str(error))

    async def look(self) -> Verdict | None:
        """Whether the canary is clearly worse than the champion."""
        return None if self._trial is None else await self._trial.look()

    def wait(self, seconds: float) -> None:
        """It could not be stopped; try again later."""
        if self._trial is not None:
            self._trial.wait(seconds)

    def status(self, aliases: Aliases) -> CanaryStatus | None:
        """Of the canary; None where the registry has none."""
        canary, generation = aliases.canary, aliases.challenger
        if canary is None or generation is None:
            return None
        served = canary == self._canary
        problem = "" if served else self.problem
        return CanaryStatus(canary.experiment, generation, canary.share, served, problem)

    @property
    def trial(self) -> TrialStatus | None:
        """Of the canary, where it is served."""
        return None if self._trial is None else self._trial.status()

    @property
    def shadow(self) -> ShadowFigures | None:
        """What came of comparing; None where nothing is compared."""
        return None if self._shadow is None else self._shadow.figures

    def _is_idle(self) -> bool:
        stats = self._pipeline.engine_stats()
        return not stats.queued_prompts and not stats.running_prompts


def experiment_of(canary: Canary) -> Experiment:
    """Champion and challenger, the challenger with the canary's share."""
    # As it is written: 0.05 is one in twenty.
    share = Fraction(repr(canary.share))
    return Experiment(canary.experiment, (Arm(CHAMPION, 1 - share), Arm(CHALLENGER, share)))


def shadow_facts(figures: ShadowFigures) -> dict[str, Any]:
    """As they are told in logs, events and answers."""
    ratio = figures.latency_ratio
    return {
        "offered": figures.offered,
        "compared": figures.compared,
        "overlap": round(figures.overlap, 4),
        "rbo": round(figures.rbo, 4),
        "illegal": figures.illegal,
        "failed": figures.failed,
        "latency_ratio": None if ratio is None else round(ratio, 3),
        "dropped": figures.dropped,
    }
