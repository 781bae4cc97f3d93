import numpy as np
import pytest

from decoding.native.cost import WaveCost


def test_the_parts_of_mixed_waves_are_told_apart_and_followed():
    random = np.random.default_rng(0)

    def teach(cost: WaveCost, factor: float) -> None:
        for _ in range(300):
            widths = random.choice([10, 50, 80, 512], random.integers(1, 6))
            rows, tokens = int(widths.sum()), 12 * len(widths)
            seconds = factor * (1e-3 + 4e-5 * rows + 3e-5 * tokens)
            cost.learn(rows, tokens, seconds * float(np.exp(0.1 * random.standard_normal())))

    cost = WaveCost()
    assert cost.seconds(128, 12) == 0
    for factor in (1.0, 3.0):
        teach(cost, factor)
        assert cost.seconds(10, 12) == pytest.approx(factor * 1.76e-3, rel=0.1)
        assert cost.seconds(2048, 96) == pytest.approx(factor * 85.8e-3, rel=0.1)
        assert cost.seconds(2048, 96, 4) > cost.seconds(2048, 96)


def test_equal_waves_do_not_make_larger_ones_look_free():
    cost = WaveCost()
    for _ in range(50):
        cost.learn(128, 12, 6.5e-3)
    assert cost.seconds(128, 12) == pytest.approx(6.5e-3, rel=0.02)
    assert cost.seconds(1280, 120) == pytest.approx(65e-3, rel=0.05)
    cost.learn(128, 12, 2.0)
    assert cost.seconds(128, 12) < 8e-3


def test_no_part_is_negative():
    cost = WaveCost()
    for rows, seconds in ((100, 5e-3), (200, 5e-3), (400, 4e-3), (800, 3e-3)):
        cost.learn(rows, 10, seconds)
    assert min(cost.seconds(0, 0), cost.seconds(1, 0, 0), cost.seconds(0, 1, 0)) >= 0
    cost.learn(0, 0, 0.0)
    assert np.isfinite(cost.seconds(10_000, 10_000))
