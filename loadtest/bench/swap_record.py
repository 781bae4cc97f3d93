"""What was seen of a run of `bench swaps`, and its rows.

latency   p99 of the answers that were due from the beginning of a swap until SETTLED_S after its
          end, beside p99 of all others
answers   how many were refused, lost, degraded, or not of one generation
swaps     disk to live: milliseconds of promotions of what was not in memory, and in its parts; what
          was still in memory beside it
memory    growth of the server and its children, megabytes a swap, by least squares

`before` of a row is of the changes that were made before it was counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from loadtest.bench.report import Row, row

SETTLED_S = 1.0
ROUND = 5
"""Four promotions, then a rollback."""
ENDED_WELL = frozenset({"200", "degraded"})
SHOWN_FAULTS = 3


@dataclass(frozen=True, slots=True)
class Swap:
    """One change of the champion. Instants are `time.perf_counter` seconds; `from_disk`: it was not
    in memory; `parts`: milliseconds as the server told them; `memory_mb`: before it."""

    kind: str
    begun: float
    ended: float
    from_disk: bool
    parts: dict[str, float]
    memory_mb: float


@dataclass(slots=True)
class Record:
    """What was seen of a run."""

    swaps: list[Swap] = field(default_factory=list[Swap])
    latencies: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """Due instant and seconds of every answer."""
    outcomes: Counter[str] = field(default_factory=Counter[str])
    failed: list[float] = field(default_factory=list[float])
    """Due instants of what was refused or lost."""
    faults: list[str] = field(default_factory=list[str])
    answered_by: Counter[str] = field(default_factory=Counter[str])

    def during(self) -> tuple[list[float], list[float]]:
        """Latencies of answers that were due during a swap, and of the others."""
        inside: list[float] = []
        outside: list[float] = []
        for due, latency in self.latencies:
            (inside if self._is_near(due) else outside).append(latency)
        return inside, outside

    def refused_or_lost(self) -> int:
        """Of all that were sent."""
        return self.outcomes.total() - sum(self.outcomes[one] for one in ENDED_WELL)

    def failed_during(self) -> int:
        """Refused or lost, and due during a swap."""
        return sum(map(self._is_near, self.failed))

    def _is_near(self, due: float) -> bool:
        return any(one.begun <= due <= one.ended + SETTLED_S for one in self.swaps)


def table_of(engine: str, rate: float, record: Record, before: Record) -> list[Row]:
    """The rows of a run at `rate` requests a second; `before`: what was seen before it."""
    setting = {"engine": engine, "requests/s": round(rate), "swaps": len(record.swaps)}
    inside, outside = record.during()
    table = [
        row(
            "p99 of answers during swaps",
            setting,
            _p99_ms(inside),
            {"outside of swaps": _p99_ms(outside)},
            "ms",
            p50_ms=[_quantile_ms(inside, 0.5), _quantile_ms(outside, 0.5)],
            slowest_ms=[_quantile_ms(inside, 1.0), _quantile_ms(outside, 1.0)],
            samples=[len(inside), len(outside)],
        ),
        row(
            "answers refused or lost",
            setting,
            float(record.refused_or_lost()),
            {},
            "of all",
            offered=record.outcomes.total(),
            outcomes=dict(record.outcomes),
            during_swaps=record.failed_during(),
            before={
                "swaps": len(before.swaps),
                "offered": before.outcomes.total(),
                "refused or lost": before.refused_or_lost(),
            },
        ),
        row(
            "answers of mixed generations",
            setting,
            float(len(record.faults)),
            {},
            "of all",
            checked=len(record.latencies),
            by_model=dict(record.answered_by),
            faults=record.faults[:SHOWN_FAULTS],
            before={"checked": len(before.latencies), "mixed": len(before.faults)},
        ),
    ]
    for from_disk, what in ((True, "disk to live"), (False, "in memory to live")):
        # What holds one set of weights reads them anew each time.
        chosen = [s for s in record.swaps if (s.from_disk or engine == "vllm") == from_disk]
        if chosen:
            table.append(
                row(
                    what,
                    setting | {"swaps": len(chosen)},
                    [(one.ended - one.begun) * 1000 for one in chosen],
                    {},
                    "ms",
                    parts_ms=_median_parts(chosen),
                    slowest_ms=_rounded(max(one.ended - one.begun for one in chosen) * 1000),
                )
            )
    slope, half = slope_of([one.memory_mb for one in record.swaps])
    table.append(
        row(
            "growth of memory",
            setting,
            slope,
            {},
            "MB/swap",
            ci95=[_rounded(slope - half), _rounded(slope + half)],
            memory_mb=[round(one.memory_mb) for one in record.swaps],
            before={"memory_mb": [round(one.memory_mb) for one in before.swaps]},
        )
    )
    return table


def _median_parts(swaps: Sequence[Swap]) -> dict[str, float]:
    names = list(dict.fromkeys(name for one in swaps for name in one.parts))
    return {
        name: _rounded(float(np.median([one.parts[name] for one in swaps if name in one.parts])))
        for name in names
    }


def _p99_ms(seconds: Sequence[float]) -> float:
    return _quantile_ms(seconds, 0.99)


def _quantile_ms(seconds: Sequence[float], share: float) -> float:
    return _rounded(float(np.quantile(seconds, share)) * 1000) if seconds else math.nan


def slope_of(values: Sequence[float]) -> tuple[float, float]:
    """Least squares over 0, 1, 2 …; the slope and half of its 95 % interval (normal errors)."""
    count = len(values)
    if count < 3:
        return 0.0, math.inf
    place = np.arange(count) - (count - 1) / 2
    spread = float((place**2).sum())
    centred = np.asarray(values) - np.mean(values)
    slope = float((place * centred).sum()) / spread
    error = math.sqrt(float(((centred - slope * place) ** 2).sum()) / (count - 2) / spread)
    return slope, 1.96 * error


def _rounded(value: float) -> float:
    return float(f"{value:.4g}") if math.isfinite(value) else value
