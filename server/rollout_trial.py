"""A generation on trial: its searches against those of the one before it, or beside it.

After a promotion a generation is on trial for a while, against what its predecessor did before. A
canary is on trial as long as it lasts, against what the champion does meanwhile. The decision is
`rollout_verdict.judge`; here is what it is given and when.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from server.figures import Figures, Parts, Sample
from server.generation import CHALLENGER, CHAMPION
from server.rollout_verdict import Tolerance, Verdict, judge, worth_a_look
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """`searches`: of the generation so far; `before`: of the other. `seconds_left`: None for one
    that lasts as long as the canary."""

    generation: str
    against: str
    searches: int
    before: int
    looks: int
    seconds_left: float | None


class Trial:
    """One trial. Used on one event loop."""

    def __init__(
        self,
        versions: tuple[str, str],
        samples: Callable[[], tuple[Sample, Sample]],
        counts: Callable[[], tuple[int, int]],
        tolerance: Tolerance,
        window_s: float | None,
    ) -> None:
        """`versions`: the generation, and the one that it is compared with. `samples`: of both;
        `counts`: how long they are, at less cost. `window_s`: None where both are measured at the
        same time."""
        self.version, self.against = versions
        self._samples, self._counts = samples, counts
        self._tolerance = tolerance
        self._until = None if window_s is None else time.monotonic() + window_s
        self._looks = self._at_last_look = 0
        self._not_before = 0.0

    @classmethod
    def after_promotion(
        cls,
        versions: tuple[str, str],
        parts: Parts,
        before: Sample,
        figures: Figures,
        own: Settings,
        window_s: float | None = None,
    ) -> Trial:
        """Of the first of two generations, which went live just now. `before`: of the second.
        `window_s`: what is left of it, all unless given."""
        since = time.monotonic()
        return cls(
            versions,
            lambda: (figures.since(parts, since), before),
            lambda: (figures.count(parts, since), len(before)),
            tolerance_of(own),
            own.rollback_window_s if window_s is None else window_s,
        )

    @classmethod
    def of_canary(
        cls,
        versions: tuple[str, str],
        challenger: Parts,
        champion: Parts,
        figures: Figures,
        own: Settings,
    ) -> Trial:
        """Of a challenger against the champion, from now on."""
        since = time.monotonic()
        return cls(
            versions,
            lambda: (
                figures.since(challenger, since, CHALLENGER),
                figures.since(champion, since, CHAMPION),
            ),
            lambda: (
                figures.count(challenger, since, CHALLENGER),
                figures.count(champion, since, CHAMPION),
            ),
            tolerance_of(own),
            None,
        )

    @property
    def is_over(self) -> bool:
        """Whether its window has passed."""
        return self._until is not None and time.monotonic() >= self._until

    async def look(self) -> Verdict | None:
        """A verdict, if there is something new to see and it is clear."""
        if time.monotonic() < self._not_before:
            return None
        count, _ = self._counts()
        if not worth_a_look(count, self._at_last_look, self._tolerance):
            return None
        self._looks, self._at_last_look = self._looks + 1, count
        new, old = self._samples()
        same_time = self._until is None
        return await asyncio.to_thread(
            judge, new, old, self._tolerance, self._looks, same_time=same_time
        )

    def wait(self, seconds: float) -> None:
        """What was decided could not be done; look again later, with what is seen then."""
        self._not_before, self._at_last_look = time.monotonic() + seconds, 0

    def status(self) -> TrialStatus:
        left = None if self._until is None else max(self._until - time.monotonic(), 0.0)
        return TrialStatus(self.version, self.against, *self._counts(), self._looks, left)


def tolerance_of(settings: Settings) -> Tolerance:
    """What the settings take for no regression."""
    return Tolerance(
        settings.rollback_searches,
        settings.rollback_failed,
        settings.rollback_degraded,
        settings.rollback_latency,
    )
