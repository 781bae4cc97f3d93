"""Ratios of sums over units, their relative lift, and what could have been found.

A metric is R = Σ_u x_u / Σ_u y_u over the units u of an arm: clicked items over shown items, pages
with an order over pages, orders over units. Units are what was assigned at random, and the pages of
one user are alike, so the variance is that of a ratio of means over units (delta method):

    Var(R) ≈ (s_x² − 2R·s_xy + R²·s_y²) / (n·ȳ²)

The lift of arm t over control c is R_t/R_c − 1. Its interval is made on the logarithm, where the
ratio of two ratios is closer to normal and an interval cannot reach below −100 %:

    se² = Var(R_t)/R_t² + Var(R_c)/R_c²,   log(R_t/R_c) ± z·se

The p-value is of the same normal variable, so a lift is significant exactly when its interval
leaves out zero. With a bootstrap over units as a check (`bootstrap_interval`).

Source: Deng, Knoblich, Lu, *Applying the Delta Method in Metric Analytics*, KDD 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 1_000
_RESAMPLES_AT_ONCE = 50
_NORMAL = NormalDist()


class Ratio(NamedTuple):
    """A metric of one arm. `variance`: of `value`; `units`: how many it is over."""

    value: float
    variance: float
    units: int

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Symmetric around the value, not below zero."""
        reach = z_of(confidence) * math.sqrt(self.variance)
        return max(self.value - reach, 0.0), self.value + reach


class Lift(NamedTuple):
    """Relative change against control. `se`: standard error of log(1 + relative)."""

    relative: float
    low: float
    high: float
    p_value: float
    se: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.low <= 0 <= self.high


def ratio(x: Floats, y: Floats) -> Ratio | None:
    """Σx / Σy over units (n,), (n,). None where Σy is zero or there are fewer than two units."""
    n = len(x)
    mean_y = float(y.mean()) if n else 0.0
    if n < 2 or mean_y <= 0:
        return None
    value = float(x.mean()) / mean_y
    residual = x - value * y
    variance = float(residual @ residual) / (n - 1) / (n * mean_y**2)
    return Ratio(value, variance, n)


def lift(control: Ratio, treatment: Ratio, confidence: float = CONFIDENCE) -> Lift | None:
    """Treatment against control. None where one of them is zero: there is no relative change."""
    if control.value <= 0 or treatment.value <= 0:
        return None
    se = math.sqrt(control.variance / control.value**2 + treatment.variance / treatment.value**2)
    log_ratio = math.log(treatment.value / control.value)
    reach = z_of(confidence) * se
    p_value = math.erfc(abs(log_ratio) / se / math.sqrt(2)) if se else float(log_ratio == 0)
    return Lift(
        math.expm1(log_ratio),
        math.expm1(log_ratio - reach),
        math.expm1(log_ratio + reach),
        p_value,
        se,
    )


def power_of(relative: float, se: float, confidence: float = CONFIDENCE) -> float:
    """How probably a true lift comes out significant, given the standard error of its logarithm."""
    shift, z = math.log1p(relative) / se, z_of(confidence)
    return _NORMAL.cdf(shift - z) + _NORMAL.cdf(-shift - z)


def detectable(se: float, power: float = POWER, confidence: float = CONFIDENCE) -> float:
    """The smallest true lift that comes out significant with a probability of `power`."""
    return math.expm1((z_of(confidence) + _NORMAL.inv_cdf(power)) * se)


def units_for(
    relative: float, se: float, units: int, power: float = POWER, confidence: float = CONFIDENCE
) -> int:
    """Units, all arms together, with which a true lift would be found with `power`, when `units`
    of them gave the standard error `se`: its square falls with their number."""
    wanted = abs(math.log1p(relative)) / (z_of(confidence) + _NORMAL.inv_cdf(power))
    return math.ceil(units * (se / wanted) ** 2)


def bootstrap_interval(
    control: tuple[Floats, Floats],
    treatment: tuple[Floats, Floats],
    random: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Percentile interval of the lift over resampled units; each arm is (x, y), both (n,)."""
    ratios = [_resampled(x, y, random, resamples) for x, y in (control, treatment)]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(ratios[1] / ratios[0] - 1, (tail, 100 - tail))
    return float(low), float(high)


def _resampled(x: Floats, y: Floats, random: np.random.Generator, resamples: int) -> Floats:
    """Σx / Σy of resamples, (resamples,). Counts of units are Poisson: nearly multinomial, and
    drawn without sorting."""
    both = np.stack((x, y), axis=1)
    sums = [
        random.poisson(1.0, (min(_RESAMPLES_AT_ONCE, resamples - first), len(x))) @ both
        for first in range(0, resamples, _RESAMPLES_AT_ONCE)
    ]
    found = np.concatenate(sums)
    return found[:, 0] / found[:, 1]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm): below 5 % means so for all of them together."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = highest
    return corrected


def z_of(confidence: float) -> float:
    """Two-sided quantile of the normal distribution."""
    return _NORMAL.inv_cdf(0.5 + confidence / 2)
