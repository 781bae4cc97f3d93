from collections import Counter
from fractions import Fraction

import pytest

from index.errors import ConfigError
from server.experiment.assignment import Experiment, unit_of
from server.experiment.sample_ratio import check_sample_ratio, chi_square_tail

UNITS = [f"user:{number}" for number in range(40_000)]


def arms(experiment: Experiment) -> dict[str, str | None]:
    found = ((unit, experiment.arm_of(unit)) for unit in UNITS)
    return {unit: None if arm is None else arm.name for unit, arm in found}


@pytest.mark.parametrize(
    "shares",
    [
        {"champion": "1/2", "challenger": "1/2"},
        {"champion": "0.95", "challenger": "0.05"},
        {"a": "1/3", "b": "1/3", "c": "1/3"},
        {"champion": "0.9", "challenger": "0.05"},
    ],
)
def test_units_are_spread_by_the_shares(shares: dict[str, str]) -> None:
    experiment = Experiment.of("ranker", shares)
    counts = Counter(arms(experiment).values())
    planned = {arm: float(Fraction(share)) for arm, share in shares.items()}
    rest = 1 - sum(planned.values())
    counts_by_name = {str(arm): count for arm, count in counts.items()}
    assert check_sample_ratio(counts_by_name, planned | ({"None": rest} if rest > 1e-9 else {})).ok


def test_an_assignment_is_the_same_everywhere_and_always() -> None:
    experiment = Experiment.of("ranker", {"champion": "1/2", "challenger": "1/2"})
    told = [experiment.arm_of(f"user:{number}") for number in range(8)]
    names = "".join("?" if arm is None else arm.name[3] for arm in told)
    assert names == "lmmmmllm"


def test_bounds_are_exact() -> None:
    """Thirds of 2⁶⁴ are no whole numbers; all of it belongs to an arm, and none to two."""
    experiment = Experiment.of("e", {"a": "1/3", "b": "1/3", "c": "1/3"})
    hashes = iter((0, 2**64 // 3, 2**64 // 3 + 1, 2 * 2**64 // 3, 2 * 2**64 // 3 + 1, 2**64 - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "_hash", lambda self, unit: next(hashes))
        found = [experiment.arm_of("u") for _ in range(6)]
    assert "".join(arm.name if arm else "?" for arm in found) == "aabbcc"


def test_no_share_means_nobody_and_all_means_everybody() -> None:
    experiment = Experiment.of("e", {"champion": "1", "challenger": "0"})
    assert set(arms(experiment).values()) == {"champion"}


def test_a_growing_arm_keeps_its_units() -> None:
    small = arms(Experiment.of("e", {"champion": "0.95", "challenger": "0.05"}))
    large = arms(Experiment.of("e", {"champion": "0.8", "challenger": "0.2"}))
    inside = [unit for unit, arm in small.items() if arm == "challenger"]
    assert all(large[unit] == "challenger" for unit in inside)


def test_another_name_shuffles_anew() -> None:
    half = {"champion": "1/2", "challenger": "1/2"}
    first, second = arms(Experiment.of("one", half)), arms(Experiment.of("two", half))
    same = sum(first[unit] == second[unit] for unit in UNITS)
    assert check_sample_ratio(
        {"same": same, "other": len(UNITS) - same}, {"same": 0.5, "other": 0.5}
    ).ok


def test_the_unit_is_the_user_or_else_the_request() -> None:
    assert unit_of("u1", "r1") == "user:u1"
    assert unit_of(None, "r1") == unit_of("", "r1") == "request:r1"


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"a": "0.6", "b": "0.6"}, "sum to at most 1"),
        ({"a": "-0.1"}, "not be negative"),
        ({"a": "half"}, "must be numbers"),
        ({}, "at least one arm"),
    ],
)
def test_wrong_shares(shares: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Experiment.of("e", shares)


@pytest.mark.parametrize(
    ("statistic", "degrees", "tail"),
    [
        # Tables of the chi-square distribution.
        (3.841459, 1, 0.05),
        (10.827566, 1, 0.001),
        (5.991465, 2, 0.05),
        (7.814728, 3, 0.05),
        (13.276704, 4, 0.01),
        (15.086272, 5, 0.01),
        (18.307038, 10, 0.05),
        (0.0, 3, 1.0),
    ],
)
def test_chi_square_tail(statistic: float, degrees: int, tail: float) -> None:
    assert chi_square_tail(statistic, degrees) == pytest.approx(tail, rel=1e-6)


def test_a_broken_split_is_caught_and_a_sound_one_is_not() -> None:
    half = {"champion": 0.5, "challenger": 0.5}
    assert check_sample_ratio({"champion": 10_050, "challenger": 9_950}, half).ok
    broken = check_sample_ratio({"champion": 10_500, "challenger": 9_500}, half)
    assert not broken.ok
    assert broken.expected == {"champion": 10_000, "challenger": 10_000}
    assert not check_sample_ratio({"champion": 200}, half).ok
    with pytest.raises(ConfigError, match="no share"):
        check_sample_ratio({"other": 5}, half)
