"""What became of recent searches, by the generation that answered: for comparing two of them.

A search is *failed* (an error, or no answer by its deadline), *degraded* (the engine did not take
part) or whole. The newest KEPT of each generation are kept, with when and how long.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from server.schemas import Degradation

KEPT = 16_384
GENERATIONS_KEPT = 4
"""More than are in memory at a time."""

Outcome = Literal["whole", "degraded", "failed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
OF_ENGINE: frozenset[Degradation] = frozenset(
    ("engine_deadline", "engine_overload", "engine_error")
)
"""What says something of the generation that answered."""
Parts = tuple[str, str]
"""Versions of checkpoint and snapshot (`Generation.parts`)."""


class Seen(NamedTuple):
    """One search: when it ended (monotonic), how many seconds it took, what became of it, and the
    arm that it was in."""

    at: float
    seconds: float
    outcome: Outcome
    arm: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Searches of one generation, oldest first. `seconds` float64 (n,), `degraded` and `failed`
    bool (n,). `span_s`: the time in which they ended."""

    seconds: NDArray[np.float64]
    degraded: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    span_s: float

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def rate(self) -> float:
        """Searches a second; 0 where that cannot be said."""
        return len(self) / self.span_s if self.span_s > 0 else 0.0

    @classmethod
    def of(cls, seen: Sequence[Seen], span_s: float) -> Sample:
        return cls(
            np.array([one.seconds for one in seen], np.float64),
            np.array([one.outcome == "degraded" for one in seen], np.bool_),
            np.array([one.outcome == "failed" for one in seen], np.bool_),
            span_s,
        )


def outcome_of(degraded: Sequence[Degradation]) -> Outcome:
    """Of a search that was answered."""
    return "whole" if OF_ENGINE.isdisjoint(degraded) else "degraded"


class Figures:
    """The searches of a server. Used on one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Parts, deque[Seen]] = {}
        self.counts: dict[tuple[str, Outcome], int] = {}
        """(arm, outcome) → searches since the start, of those that had an arm."""

    def add(self, parts: Parts, arm: str | None, seconds: float, outcome: Outcome) -> None:
        """One search has ended."""
        kept = self._seen.get(parts)
        if kept is None:
            kept = self._seen[parts] = deque(maxlen=KEPT)
            while len(self._seen) > GENERATIONS_KEPT:
                oldest = min(self._seen, key=lambda one: self._last(self._seen[one]))
                del self._seen[oldest]
        kept.append(Seen(self._clock(), seconds, outcome, arm))
        if arm is not None:
            self.counts[arm, outcome] = self.counts.get((arm, outcome), 0) + 1

    def count(self, parts: Parts, since: float, arm: str | None = None) -> int:
        """How many `since` would find."""
        return len(self._found(parts, since, arm))

    def since(self, parts: Parts, since: float, arm: str | None = None) -> Sample:
        """What ended at or after a monotonic time, in an arm if one is named."""
        seen = self._found(parts, since, arm)
        whole = len(self._seen.get(parts, ())) < KEPT or not seen
        return Sample.of(seen, self._clock() - (since if whole else seen[0].at))

    def last(self, parts: Parts, seconds: float) -> Sample:
        """What ended in the last `seconds`; its span begins with the first of them."""
        now = self._clock()
        seen = self._found(parts, now - seconds, None)
        return Sample.of(seen, now - seen[0].at if seen else 0.0)

    def _found(self, parts: Parts, since: float, arm: str | None) -> list[Seen]:
        return [
            one
            for one in self._seen.get(parts, ())
            if one.at >= since and (arm is None or one.arm == arm)
        ]

    def _last(self, kept: deque[Seen]) -> float:
        # One that was begun just now is empty.
        return kept[-1].at if kept else float("inf")
