"""The search for the knee, against a server that exists only as a number."""

import pytest

from loadtest.knee import find_knee
from loadtest.plan import KneeSearch


@pytest.mark.parametrize("capacity", [11.0, 31.0, 100.0, 163.0, 900.0])
def test_the_knee_is_found_within_a_few_percent(capacity: float):
    knee, steps = find_knee(lambda rate, _: 1.0 if rate <= capacity else 0.5, KneeSearch())
    assert 0.93 * capacity <= knee <= capacity
    assert all(step.held == (step.rate <= capacity) for step in steps)


def test_one_bad_step_is_tried_again():
    tries: list[float] = []

    def carried(rate: float, seconds: float) -> float:
        tries.append(rate)
        return 0.9 if len(tries) == 2 or rate > 100 else 1.0

    knee, steps = find_knee(carried, KneeSearch())
    assert knee > 90
    assert tries[1] == tries[2]
    assert steps[1].held


def test_what_carries_nothing_has_no_knee():
    knee, steps = find_knee(lambda rate, seconds: 0.0, KneeSearch())
    assert knee == 0
    assert not any(step.held for step in steps)
    assert steps[-1].rate == KneeSearch().least_rate


def test_the_search_ends_at_the_most_that_is_wanted():
    knee, _ = find_knee(lambda rate, seconds: 1.0, KneeSearch(most_rate=100))
    assert knee == 100
