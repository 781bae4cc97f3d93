"""The statistics against simulated users, whose true lift is known."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from server.experiment.assignment import Experiment
from server.experiment.metrics import METRICS, in_arm, sums_of
from server.experiment.outcomes import Outcomes
from server.experiment.report import lift_of, members_of
from server.experiment.sample_ratio import check_sample_ratio
from server.experiment.simulation import SimulatedShop, simulate, simulate_arms, simulated_units
from server.experiment.statistics import (
    Lift,
    Ratio,
    bootstrap_interval,
    detectable,
    holm,
    lift,
    power_of,
    ratio,
    units_for,
)

RUNS = 200
HALF = {"champion": "1/2", "challenger": "1/2"}


def lifts_of(outcomes: Outcomes) -> dict[str, Lift]:
    sums = sums_of(outcomes)
    members = [members_of(outcomes, arm) for arm in ("champion", "challenger")]
    found = {name: lift_of(sums[name], *members) for name in METRICS}
    return {name: one for name, one in found.items() if one is not None}


@pytest.fixture(scope="module")
def experiments() -> Callable[[SimulatedShop], Iterator[tuple[Experiment, Outcomes]]]:
    """`experiments(shop)`: RUNS simulated experiments, each with an assignment of its own."""

    def run(shop: SimulatedShop) -> Iterator[tuple[Experiment, Outcomes]]:
        random = np.random.default_rng(11)
        for number in range(RUNS):
            experiment = Experiment.of(f"run {number}", HALF)
            yield experiment, simulate(shop, experiment, random)

    return run


def test_of_experiments_without_a_difference_one_in_twenty_is_significant(
    experiments: Callable[[SimulatedShop], Iterator[tuple[Experiment, Outcomes]]],
) -> None:
    significant = dict.fromkeys(METRICS, 0)
    naive = suspicious = 0
    for _, outcomes in experiments(SimulatedShop(users=1_500)):
        for name, found in lifts_of(outcomes).items():
            significant[name] += found.significant
        naive += abs(z_of_items(outcomes)) > 1.96
        counts = {arm: int(members_of(outcomes, arm).sum()) for arm in outcomes.arms}
        suspicious += not check_sample_ratio(counts, {"champion": 0.5, "challenger": 0.5}).ok
    assert {name for name, count in significant.items() if 0.02 <= count / RUNS <= 0.09} == set(
        METRICS
    ), significant
    # To take shown items for independent would call far too many of them significant.
    assert naive / RUNS > 0.2
    assert suspicious <= 2


def test_a_planted_lift_is_found_with_the_stated_power_and_covered_by_its_interval(
    experiments: Callable[[SimulatedShop], Iterator[tuple[Experiment, Outcomes]]],
) -> None:
    planted = 0.05
    shop = SimulatedShop(users=10_000, searches=2.0, click_lift=planted)
    found = [lifts_of(outcomes)["item_ctr"] for _, outcomes in experiments(shop)]
    covered = sum(one.low <= planted <= one.high for one in found) / RUNS
    assert 0.91 <= covered <= 0.985
    stated = float(np.mean([power_of(planted, one.se) for one in found]))
    share = sum(one.significant and one.relative > 0 for one in found) / RUNS
    assert 0.3 < stated < 0.95
    assert abs(share - stated) < 3 * math.sqrt(stated * (1 - stated) / RUNS)
    assert np.mean([one.relative for one in found]) == pytest.approx(planted, abs=0.006)


def z_of_items(outcomes: Outcomes) -> float:
    """Difference of click rates as if every shown item were a unit of its own."""
    arm = outcomes.unit_arm[outcomes.page_unit][outcomes.shown_page]
    rates = [outcomes.clicked[arm == number].mean() for number in (0, 1)]
    variances = [rate * (1 - rate) / (arm == number).sum() for number, rate in enumerate(rates)]
    return float((rates[1] - rates[0]) / math.sqrt(sum(variances)))


def test_users_that_search_more_do_not_bias_the_split() -> None:
    """An arm that loses its clicking users is caught by the sample ratio, whatever its CTR says."""
    experiment = Experiment.of("broken", HALF)
    arm_of = [experiment.arm_of(unit) for unit in simulated_units(8_000)]
    unit_arm = np.asarray([int(arm is not None and arm.name == "challenger") for arm in arm_of])
    lost = (unit_arm == 1) & (np.arange(len(unit_arm)) % 10 == 0)
    outcomes = simulate_arms(
        SimulatedShop(),
        "broken",
        ("champion", "challenger"),
        unit_arm[~lost],
        np.random.default_rng(0),
    )
    counts = {arm: int(members_of(outcomes, arm).sum()) for arm in outcomes.arms}
    assert not check_sample_ratio(counts, {"champion": 0.5, "challenger": 0.5}).ok


def test_a_ratio_by_hand() -> None:
    """x = (1, 2, 3), y = (2, 2, 4): R = 3/4, residuals x − R·y = (−1/2, 1/2, 0)."""
    found = ratio(np.asarray([1.0, 2.0, 3.0]), np.asarray([2.0, 2.0, 4.0]))
    assert found == Ratio(0.75, pytest.approx(0.25 / (3 * (8 / 3) ** 2)), 3)
    assert ratio(np.zeros(3), np.zeros(3)) is None
    assert ratio(np.ones(1), np.ones(1)) is None


def test_the_delta_method_agrees_with_the_bootstrap() -> None:
    experiment = Experiment.of("agreement", HALF)
    shop = SimulatedShop(users=3_000, click_lift=0.05)
    outcomes = simulate(shop, experiment, np.random.default_rng(3))
    sums = sums_of(outcomes)
    members = [members_of(outcomes, arm) for arm in outcomes.arms]
    for name in METRICS:
        control, treatment = (in_arm(sums[name], one) for one in members)
        found = lift_of(sums[name], *members)
        assert found is not None
        low, high = bootstrap_interval(control, treatment, np.random.default_rng(4))
        width = found.high - found.low
        assert [low, high] == pytest.approx([found.low, found.high], abs=0.1 * width)


def test_power_and_what_can_be_detected_fit() -> None:
    se = 0.02
    smallest = detectable(se)
    assert power_of(smallest, se) == pytest.approx(0.8, abs=1e-6)
    assert power_of(0.0, se) == pytest.approx(0.05)
    assert units_for(smallest, se, 1_000) in (1_000, 1_001)
    assert units_for(math.expm1(math.log1p(smallest) / 2), se, 1_000) in (4_000, 4_001)


def test_lifts_without_clicks_are_undefined() -> None:
    none, some = Ratio(0.0, 0.0, 10), Ratio(0.1, 0.001, 10)
    assert lift(none, some) is None
    assert lift(some, none) is None
    same = lift(some, some)
    assert same is not None
    assert [same.relative, same.p_value, same.significant] == [0.0, 1.0, False]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
