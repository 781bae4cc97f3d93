"""What a server does about its registry, as it is told to people and programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.canary import CanaryStatus
from server.rollout_trial import TrialStatus
from server.rollout_verdict import Verdict
from server.shadow import ShadowFigures

Action = Literal["rollback", "canary-stop"]


@dataclass(frozen=True, slots=True)
class Condemned:
    """A generation that was found worse, and what was done. `when`: Unix time; `problem`: why it
    could not be done here, else ""."""

    action: Action
    generation: str
    verdict: Verdict
    when: float
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """`alias`: of the live generation, "" for none. `revision`: of the aliases as last seen.
    `problem`: why the champion is not served, else "". `trials`: of what is served; `condemned`:
    the last generation that was found worse. `rollbacks`, `stops`: made by themselves, here."""

    generation: str
    alias: str
    revision: int
    champion: str | None
    beside: str | None
    problem: str
    promotions: int
    refusals: int
    canary: CanaryStatus | None = None
    trials: tuple[TrialStatus, ...] = ()
    shadow: ShadowFigures | None = None
    condemned: Condemned | None = None
    rollbacks: int = 0
    stops: int = 0
