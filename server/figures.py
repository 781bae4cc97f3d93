"""What became of recent searches, by the generation that answered: for comparing two of them.

A search is *failed* (an error, or no answer by its deadline), *degraded* (the engine did not take
part) or whole. The newest KEPT of each generation are kept, with when and how long.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError
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

    def summary(self) -> dict[str, Any]:
        """As it can be kept: counts, and milliseconds of three digits with how many took them. The
        order is lost."""
        answered = Counter(float(f"{1000 * one:.3g}") for one in self.seconds[~self.failed])
        return {
            "span_s": self.span_s,
            "failed": int(self.failed.sum()),
            "degraded": int(self.degraded.sum()),
            "answered_ms": sorted(answered.items()),
        }

    @classmethod
    def of_summary(cls, kept: Mapping[str, Any]) -> Sample:
        """From what `summary` gave. Raises DataError for anything else."""
        try:
            answered = kept["answered_ms"]
            values = np.array([ms for ms, _ in answered], np.float64) / 1000
            counts = np.array([count for _, count in answered], np.int64)
            failed, degraded = int(kept["failed"]), int(kept["degraded"])
            span_s = float(kept["span_s"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"no summary of searches: {error!r}") from None
        seconds = np.repeat(values, counts)
        place = np.arange(len(seconds) + failed)
        return cls(
            np.concatenate((seconds, np.zeros(failed))),
            place < degraded,
            place >= len(seconds),
            span_s,
        )

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
