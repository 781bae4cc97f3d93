"""Sample-ratio check: whether the arms hold the shares of units that they should.

A chi-square test of counted units against expected shares. A ratio that chance would give less than
once in 2,000 times means that assignment, logging or filtering is broken, and then no other figure
of the experiment can be believed: what lost the units may have lost certain users.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from index.errors import ConfigError

SUSPICIOUS_P = 0.0005


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """`counts`: units of each arm; `expected`: units that its share would give."""

    counts: Mapping[str, int]
    expected: Mapping[str, float]
    chi_square: float
    p_value: float

    @property
    def ok(self) -> bool:
        return self.p_value >= SUSPICIOUS_P


def check_sample_ratio(counts: Mapping[str, int], shares: Mapping[str, float]) -> SampleRatio:
    """Raises ConfigError when an arm has units but no share."""
    if missing := [arm for arm, count in counts.items() if count and shares.get(arm, 0) <= 0]:
        raise ConfigError(f"arm {missing[0]!r} has units but no share; name every arm's share")
    planned = {arm: share for arm, share in shares.items() if share > 0}
    total, whole = sum(counts.values()), sum(planned.values())
    expected = {arm: total * share / whole for arm, share in planned.items()}
    if not total:
        return SampleRatio(dict(counts), expected, 0.0, 1.0)
    statistic = sum((counts.get(arm, 0) - mean) ** 2 / mean for arm, mean in expected.items())
    p_value = chi_square_tail(statistic, len(planned) - 1)
    return SampleRatio({arm: counts.get(arm, 0) for arm in planned}, expected, statistic, p_value)


def chi_square_tail(statistic: float, degrees: int) -> float:
    """P(X ≥ statistic) of a chi-square variable with a whole number of degrees of freedom.

    The closed form: a finite sum for even degrees, erfc and a finite sum for odd ones.
    """
    if degrees <= 0 or statistic <= 0:
        return 1.0
    half = statistic / 2
    if degrees % 2 == 0:
        term = tail = math.exp(-half)
        for k in range(1, degrees // 2):
            term *= half / k
            tail += term
        return tail
    tail = math.erfc(math.sqrt(half))
    term = math.exp(-half) * math.sqrt(half) / math.gamma(1.5)
    for k in range(degrees // 2):
        tail += term
        term *= half / (k + 1.5)
    return tail
