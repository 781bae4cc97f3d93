"""Whether a generation is clearly worse than another in serving: a pure decision.

Three rules, each a share p of the new one's searches against a share q that would be no worse:

    failed      q = u(failed of the old one) + tolerance
    degraded    q = u(degraded of the old one) + tolerance
    slow        searches above `latency` · v, v the old one's 90th percentile; q = 10 %

u is the upper Clopper–Pearson bound, v the upper bound of the percentile by its order statistic, so
that few searches of the old one are no evidence against the new. A rule is broken when the binomial
probability of the new one's count, or more, under q is below the look's level.

Looks are repeated, so their levels are spent: look k = 1, 2, … has α / (3·k·(k+1)), half of it for
u or v and half for the count. The levels of all looks and rules sum to α, however long it goes on
(union bound), if searches are independent. They are not quite: a machine that stalls makes many
slow at once. So p must be above q in the older and in the newer half of the searches as well.

Figures from before a promotion were taken under another load. When searches come more than
BUSIER times as often as then, only failures are judged: more degraded and slower ones are expected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from server.figures import Sample

ALPHA = 0.001
"""Of all looks at one generation: how often one that is no worse may be found so."""
RULES = 3
SLOW_SHARE = 0.1
"""Above the 90th percentile."""
BUSIER = 1.5
BISECTIONS = 40
TAIL = 20
"""Standard deviations beyond which a binomial has no weight."""
LOOK_GROWTH = 1.25
"""A look is worth it when there are so many times the searches of the one before."""

Rule = Literal["failed", "degraded", "slow"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What is no regression: `failed` and `degraded` are added to the old one's share, `latency`
    multiplies its 90th percentile. `searches`: fewer of either are not judged."""

    searches: int
    failed: float
    degraded: float
    latency: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Worse, by `rule`. `share` of `searches`, where `allowed` would be no worse; `before` is what
    it was in `searches_before`. `limit_ms`: what is slow, else None; `level`: the look's."""

    rule: Rule
    share: float
    searches: int
    before: float
    searches_before: int
    allowed: float
    limit_ms: float | None
    level: float

    def __str__(self) -> str:
        what = self.rule if self.limit_ms is None else f"above {self.limit_ms:.0f} ms"
        return (
            f"{self.share:.1%} of {self.searches} searches {what}, against {self.before:.1%} of "
            f"{self.searches_before} ({self.allowed:.1%} would be no worse)"
        )


def worth_a_look(searches: int, at_last_look: int, tolerance: Tolerance) -> bool:
    """Whether there are enough searches, and enough more than at the last look."""
    return searches >= max(tolerance.searches, math.ceil(LOOK_GROWTH * at_last_look))


def judge(
    new: Sample, old: Sample, tolerance: Tolerance, look: int, *, same_time: bool
) -> Verdict | None:
    """The first rule that the new one breaks at look `look` (1, 2, …); None for no evidence.

    `same_time`: both were measured side by side, so their load was the same.
    """
    if min(len(new), len(old)) < tolerance.searches:
        return None
    level = ALPHA / (RULES * look * (look + 1))
    allowed = upper_bound(int(old.failed.sum()), len(old), level / 2) + tolerance.failed
    if _is_above(new.failed, allowed, level / 2):
        return _verdict("failed", new.failed, old.failed, allowed, None, level)
    if not same_time and new.rate > BUSIER * old.rate:
        return None
    allowed = upper_bound(int(old.degraded.sum()), len(old), level / 2) + tolerance.degraded
    if _is_above(new.degraded, allowed, level / 2):
        return _verdict("degraded", new.degraded, old.degraded, allowed, None, level)
    answered = new.seconds[~new.failed]
    bound = percentile_bound(old.seconds[~old.failed], 1 - SLOW_SHARE, level / 2)
    limit = tolerance.latency * bound
    slow = answered > limit
    if _is_above(slow, SLOW_SHARE, level / 2):
        before = old.seconds[~old.failed] > limit
        return _verdict("slow", slow, before, SLOW_SHARE, limit * 1000, level)
    return None


def upper_bound(count: int, n: int, level: float) -> float:
    """The share that gives `count` of n or fewer with probability `level` (Clopper–Pearson)."""
    if count >= n:
        return 1.0
    low, high = count / n, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        # 1 − P(X ≥ count + 1) = P(X ≤ count)
        if 1 - at_least(count + 1, n, middle) > level:
            low = middle
        else:
            high = middle
    return high


def percentile_bound(values: NDArray[np.float64], share: float, level: float) -> float:
    """The smallest of the values (n,) that is below the `share` percentile with a probability of
    at most `level`; infinite where n is too small to say."""
    n = len(values)
    # The r-th smallest is below it when at least r values are.
    low, high = 0, n + 1
    while high - low > 1:
        middle = (low + high) // 2
        if at_least(middle, n, share) <= level:
            high = middle
        else:
            low = middle
    return float(np.partition(values, high - 1)[high - 1]) if high <= n else math.inf


def at_least(count: int, n: int, share: float) -> float:
    """P(X ≥ count) of a binomial X of n trials."""
    if count <= 0:
        return 1.0
    if count > n or share <= 0:
        return 0.0
    if share >= 1:
        return 1.0
    # What lies far above the mean adds nothing.
    reach = int(max(count, n * share) + TAIL * math.sqrt(n * share * (1 - share)) + TAIL)
    k = np.arange(count, min(n, reach) + 1)
    factorials = _log_factorials(n)
    log_choices = factorials[n] - factorials[k] - factorials[n - k]
    logs = log_choices + k * math.log(share) + (n - k) * math.log1p(-share)
    return min(float(np.exp(logs).sum()), 1.0)


@lru_cache(maxsize=4)
def _log_factorials(n: int) -> NDArray[np.float64]:
    """log 0!, …, log n!"""
    return np.concatenate(([0.0], np.log(np.arange(1, n + 1, dtype=np.float64)).cumsum()))


def _is_above(bad: NDArray[np.bool_], allowed: float, level: float) -> bool:
    """Whether more than the allowed share are bad, on the whole and in either half."""
    n = len(bad)
    halves = (bad[: n // 2], bad[n // 2 :])
    if any(half.sum() <= allowed * len(half) for half in halves):
        return False
    return at_least(int(bad.sum()), n, allowed) <= level


def _verdict(
    rule: Rule,
    bad: NDArray[np.bool_],
    before: NDArray[np.bool_],
    allowed: float,
    limit_ms: float | None,
    level: float,
) -> Verdict:
    return Verdict(
        rule,
        float(bad.mean()),
        len(bad),
        float(before.mean()) if len(before) else 0.0,
        len(before),
        allowed,
        limit_ms,
        level,
    )
