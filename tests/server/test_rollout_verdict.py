import math
from typing import Any

import numpy as np
import pytest

from server.figures import Sample
from server.rollout_verdict import (
    ALPHA,
    Tolerance,
    at_least,
    judge,
    percentile_bound,
    upper_bound,
    worth_a_look,
)

TOLERANCE = Tolerance(searches=100, failed=0.01, degraded=0.05, latency=1.5)


def sample(
    n: int, failed: Any = 0, degraded: Any = 0, seconds: Any = 0.01, span_s: float = 60
) -> Sample:
    """n searches; a number of bad ones is spread evenly over them."""

    def marked(what: Any) -> Any:
        if not isinstance(what, int):
            return np.asarray(what, np.bool_)
        marks = np.zeros(n, np.bool_)
        marks[np.linspace(0, n - 1, what).astype(int)] = what > 0
        return marks

    return Sample(np.full(n, seconds), marked(degraded), marked(failed), span_s)


def rule(new: Sample, old: Sample, **changes: Any) -> str | None:
    given = {"look": 1, "same_time": False} | changes
    found = judge(new, old, TOLERANCE, **given)
    return None if found is None else found.rule


def test_binomial_tails():
    assert at_least(0, 10, 0.3) == 1
    assert at_least(11, 10, 0.3) == 0
    assert at_least(10, 10, 0.5) == pytest.approx(2**-10)
    assert at_least(9, 10, 0.5) == pytest.approx(11 * 2**-10)
    assert at_least(5000, 10_000, 0.5) == pytest.approx(0.50399, abs=1e-4)
    assert at_least(3, 3, 1.0) == 1


def test_bounds():
    # The rule of three: nothing in n is a share below -log(level) / n.
    assert upper_bound(0, 1000, 0.05) == pytest.approx(-math.log(0.05) / 1000, rel=0.01)
    assert upper_bound(5, 5, 0.05) == 1
    assert 1 - at_least(4, 20, upper_bound(3, 20, 0.01)) == pytest.approx(0.01, rel=1e-6)
    values = np.random.default_rng(0).permutation(1000).astype(np.float64)
    bound = percentile_bound(values, 0.9, 0.01)
    assert 900 < bound < 930
    assert at_least(int(bound) + 1, 1000, 0.9) <= 0.01 < at_least(int(bound), 1000, 0.9)
    assert percentile_bound(values[:10], 0.9, 0.01) == math.inf


def test_what_is_worse_is_told_with_its_figures():
    old = sample(1000, failed=1)
    found = judge(sample(200, failed=24), old, TOLERANCE, 1, same_time=False)
    assert found is not None
    assert [found.rule, found.share, found.searches, found.before] == ["failed", 0.12, 200, 0.001]
    assert str(found).startswith("12.0% of 200 searches failed, against 0.1% of 1000")
    assert rule(sample(200, degraded=60), sample(1000, degraded=10)) == "degraded"
    slow = judge(sample(200, seconds=0.03), old, TOLERANCE, 1, same_time=False)
    assert slow is not None
    assert [slow.rule, slow.share, slow.limit_ms] == ["slow", 1.0, pytest.approx(15)]
    assert "above 15 ms" in str(slow)


def test_what_is_no_worse_is_left_alone():
    old = sample(1000, failed=10, degraded=100)
    assert rule(sample(1000, failed=15, degraded=130, seconds=0.014), old) is None
    assert rule(sample(99, failed=99), old) is None
    assert rule(sample(500, failed=500), sample(99)) is None
    # Nothing is known of a rate that was not seen.
    assert rule(sample(200, failed=4), sample(100)) is None


def test_a_stall_is_no_regression():
    stalled = np.arange(400) < 100
    assert rule(sample(400, failed=stalled), sample(1000)) is None
    assert rule(sample(400, failed=~stalled), sample(1000)) == "failed"


def test_under_more_load_than_before_only_failures_count():
    busy, old = sample(200, degraded=100, seconds=0.1, span_s=5), sample(1000)
    assert rule(busy, old) is None
    assert rule(busy, old, same_time=True) == "degraded"
    assert rule(sample(200, failed=100, span_s=5), old) == "failed"


def test_looks_come_when_there_is_more_to_see():
    assert not worth_a_look(99, 0, TOLERANCE)
    assert worth_a_look(100, 0, TOLERANCE)
    assert not worth_a_look(124, 100, TOLERANCE)
    assert worth_a_look(125, 100, TOLERANCE)


def test_looking_again_and_again_rarely_condemns_what_is_no_worse():
    """Exactly at the allowed share, which is the hardest case; α is 0.1 %."""
    rng, condemned, runs = np.random.default_rng(1), 0, 100
    for _ in range(runs):
        old = sample(2000, failed=rng.random(2000) < 0.02)
        new, look, n = rng.random(5000) < 0.03, 0, 0
        while n < 4000:
            n = max(100, math.ceil(1.25 * n))
            look += 1
            if rule(sample(n, failed=new[:n]), old, look=look) is not None:
                condemned += 1
                break
    assert condemned <= runs * ALPHA + 1


def test_what_is_clearly_worse_is_found_soon():
    rng, found = np.random.default_rng(2), 0
    for _ in range(50):
        old = Sample(rng.lognormal(-4, 0.5, 500), *np.zeros((2, 500), np.bool_), 60)
        new = Sample(3 * rng.lognormal(-4, 0.5, 300), *np.zeros((2, 300), np.bool_), 30)
        found += rule(new, old, look=3) == "slow"
    assert found == 50
