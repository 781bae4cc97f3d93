"""The knee: the largest rate of searches at which almost all are answered whole within a bound.

Rates rise in steps until one does not hold, then the gap to the last that held is halved on a
logarithmic scale. A step that does not hold is tried once more, since a machine's hiccup in a few
seconds is no knee: it has to fail twice. What is refused, degraded, lost or late counts alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from loadtest.plan import KneeSearch

Carried = Callable[[float, float], float]
"""(rate per second, seconds) → share of what was due that was answered whole within the bound."""


class Step(NamedTuple):
    """One rate that was tried; `share` as the better of its tries."""

    rate: float
    share: float
    held: bool


def find_knee(carried: Carried, search: KneeSearch) -> tuple[float, list[Step]]:
    """Requests per second, 0 where not even `least_rate` held; and every step, in its order."""
    steps: list[Step] = []

    def holds(rate: float) -> bool:
        share = carried(rate, search.step_s)
        if share < search.share:
            share = max(share, carried(rate, search.step_s))
        steps.append(Step(rate, share, share >= search.share))
        return steps[-1].held

    low, high = search.first_rate, search.first_rate * search.factor
    if holds(low):
        while holds(high):
            low = high
            if high >= search.most_rate:
                return low, steps
            high = min(high * search.factor, search.most_rate)
    else:
        # A slow machine: down instead of up.
        low, high = search.first_rate / 2, search.first_rate
        while not holds(low):
            if low <= search.least_rate:
                return 0.0, steps
            low, high = max(low / 2, search.least_rate), low
    for _ in range(search.bisections):
        middle = math.sqrt(low * high)
        if holds(middle):
            low = middle
        else:
            high = middle
    return low, steps
