"""The hierarchical bootstrap against cases that can be enumerated by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.training.ablation_bootstrap import SeedBootstrap


def bootstrap(owners: list[str], seeds: int, samples: int = 20_000) -> SeedBootstrap:
    return SeedBootstrap(owners, seeds, np.random.default_rng(0), samples)


def shares(means: np.ndarray) -> dict[float, float]:
    """Value → how often it was drawn."""
    values, counts = np.unique(means.round(6), return_counts=True)
    return dict(zip(values.tolist(), (counts / len(means)).tolist(), strict=True))


def test_queries_are_drawn_with_replacement() -> None:
    """Two queries, one value each: both of one, or one of each, at ¼, ½, ¼."""
    found = bootstrap(["a", "b"], 1).means(np.array([[0.0, 1.0]]), np.ones(2, np.bool_))
    assert shares(found) == pytest.approx({0.0: 0.25, 0.5: 0.5, 1.0: 0.25}, abs=0.02)


def test_searches_of_one_query_stay_together() -> None:
    """Query a three times with 1, b once with 0: {aa: 1, ab: ¾, bb: 0}, never 2/4."""
    values = np.array([[1.0, 1.0, 1.0, 0.0]])
    found = bootstrap(["a", "a", "a", "b"], 1).means(values, np.ones(4, np.bool_))
    assert shares(found) == pytest.approx({0.0: 0.25, 0.75: 0.5, 1.0: 0.25}, abs=0.02)


def test_seeds_and_queries_are_drawn_independently() -> None:
    """Seeds × queries [[0, 0], [0, 4]]: a mean is 4 · share of the second seed · share of b, each
    share 0, ½ or 1 at ¼, ½, ¼."""
    values = np.array([[0.0, 0.0], [0.0, 4.0]])
    found = bootstrap(["a", "b"], 2).means(values, np.ones(2, np.bool_))
    expected = {0.0: 7 / 16, 1.0: 4 / 16, 2.0: 4 / 16, 4.0: 1 / 16}
    assert shares(found) == pytest.approx(expected, abs=0.02)


def test_the_interval_holds_the_mean_and_the_edges() -> None:
    """100 queries, half of them hit: the mean of ½ has a deviation of 0.05."""
    values = np.tile([0.0, 1.0], 50)[None]
    mean, (low, high) = bootstrap([str(i) for i in range(100)], 1).interval(values)
    assert mean == 0.5
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.012)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.012)


def test_a_difference_that_is_the_same_everywhere_has_no_width() -> None:
    """Pairing: rows that vary wildly but differ by a constant."""
    random = np.random.default_rng(1)
    left = random.random((3, 40))
    owners = [str(i % 7) for i in range(40)]
    mean, edges = bootstrap(owners, 3).interval((left + 0.25) - left)
    assert [mean, *edges] == pytest.approx([0.25] * 3)


def test_seeds_that_disagree_widen_the_interval() -> None:
    owners = [str(i) for i in range(200)]
    alike = np.full((3, 200), 0.5)
    apart = alike + np.array([[-0.2], [0.0], [0.2]])
    boot = bootstrap(owners, 3)
    assert boot.interval(alike) == (0.5, [0.5, 0.5])
    mean, (low, high) = boot.interval(apart)
    # All three draws of one seed: (1/3)³ = 3.7 % each, more than the 2.5 % beyond an edge.
    assert (mean, low, high) == pytest.approx((0.5, 0.3, 0.7))


def test_a_slice_counts_its_own_searches_only() -> None:
    values = np.array([[1.0, 0.0, 1.0, 0.0]])
    mask = np.array([True, False, True, False])
    boot = bootstrap(["a", "b", "c", "d"], 1)
    assert boot.interval(values, mask) == (1.0, [1.0, 1.0])
    assert boot.interval(values, np.zeros(4, np.bool_)) == (0.0, [0.0, 0.0])
    # Resamples that hold neither a nor c say nothing: (½)⁴ of them.
    assert len(boot.means(values, mask)) == pytest.approx(20_000 * 15 / 16, rel=0.01)
