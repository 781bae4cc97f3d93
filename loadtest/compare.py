"""Two runs beside each other: which latencies changed, and whether that can be told from chance.

For each phase and kind that both have, the ratio new / base of p50, p95 and p99, with a 95 %
interval by the bootstrap. Requests that came close together were slow together, so whole seconds
are drawn, not single requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.results import STEP_PREFIX, Requests, Run

QUANTILES = (0.5, 0.95, 0.99)
DRAWS = 400
MIN_SECONDS = 5
SLOWER = 1.1


@dataclass(frozen=True, slots=True)
class Difference:
    """One quantile in both runs. `low`, `high`: of `ratio`; NaN where the runs are too short."""

    phase: str
    kind: str
    quantile: str
    base_ms: float
    new_ms: float
    ratio: float
    low: float
    high: float

    def verdict(self, slower: float = SLOWER) -> str:
        """ "slower" or "faster" where the interval is above `slower` or below its inverse."""
        if self.low > slower:
            return "slower"
        return "faster" if self.high < 1 / slower else "no clear difference"

    def as_json(self, slower: float) -> dict[str, Any]:
        """With the verdict."""
        return asdict(self) | {"verdict": self.verdict(slower)}


def compare(base: Run, new: Run, seed: int = 0) -> list[Difference]:
    """Of everything that both have, but the steps of the knee's search, whose rates differ."""
    random = np.random.default_rng(seed)
    found: list[Difference] = []
    for (phase, kind), before in base.requests.items():
        after = new.requests.get((phase, kind))
        if phase.startswith(STEP_PREFIX) or after is None:
            continue
        if not (before.latencies and after.latencies):
            continue
        values = [np.quantile(one.latencies, QUANTILES) * 1000 for one in (before, after)]
        ratios = _drawn(after, random) / _drawn(before, random)
        low, high = np.quantile(ratios, (0.025, 0.975), axis=0)
        for place, quantile in enumerate(QUANTILES):
            old, now = float(values[0][place]), float(values[1][place])
            found.append(
                Difference(
                    phase,
                    kind,
                    f"p{quantile * 100:.0f}",
                    round(old, 2),
                    round(now, 2),
                    round(now / old, 3),
                    round(float(low[place]), 3),
                    round(float(high[place]), 3),
                )
            )
    return found


def _drawn(requests: Requests, random: np.random.Generator) -> NDArray[np.float64]:
    """Quantiles of DRAWS runs made of this one's seconds: float64 (DRAWS, quantiles)."""
    seconds = np.floor(np.asarray(requests.due) - min(requests.due)).astype(np.int64)
    order = np.argsort(seconds, kind="stable")
    starts = np.flatnonzero(np.diff(seconds[order], prepend=-1))
    blocks: Sequence[NDArray[np.float64]] = np.split(
        np.asarray(requests.latencies)[order], starts[1:]
    )
    if len(blocks) < MIN_SECONDS:
        return np.full((DRAWS, len(QUANTILES)), np.nan)
    rows = [
        np.quantile(
            np.concatenate([blocks[one] for one in random.integers(len(blocks), size=len(blocks))]),
            QUANTILES,
        )
        for _ in range(DRAWS)
    ]
    return np.asarray(rows, np.float64)
