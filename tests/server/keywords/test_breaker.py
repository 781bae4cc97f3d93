"""The circuit breaker's states, on a clock that the tests move."""

from __future__ import annotations

import pytest

from index.errors import ConfigError
from server.keywords.breaker import BreakerState, CircuitBreaker


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(failures=3, open_s=10.0, clock=clock)


def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        breaker.fail(breaker.begin())


def test_opens_after_failures_in_a_row(breaker: CircuitBreaker) -> None:
    fail(breaker, 2)
    breaker.succeed(breaker.begin())
    fail(breaker, 2)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.wait_s() == 0
    fail(breaker, 1)
    assert breaker.state is BreakerState.OPEN
    assert breaker.wait_s() == 10.0
    assert breaker.opened == 1


def test_a_probe_that_succeeds_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 10
    assert breaker.state is BreakerState.HALF_OPEN
    probe = breaker.begin()
    assert breaker.wait_s() > 0, "one probe at a time"
    breaker.succeed(probe)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 2)
    assert breaker.state is BreakerState.CLOSED, "counting starts anew"


def test_a_probe_that_fails_opens_it_again(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 10
    fail(breaker, 1)
    assert breaker.state is BreakerState.OPEN
    assert breaker.wait_s() == 10.0
    assert breaker.opened == 2


def test_a_cancelled_probe_makes_room_for_the_next(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 10
    breaker.abandon(breaker.begin())
    assert breaker.wait_s() == 0
    breaker.succeed(breaker.begin())
    assert breaker.state is BreakerState.CLOSED


def test_late_answers_of_an_earlier_era_change_nothing(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    late = [breaker.begin() for _ in range(3)]
    fail(breaker, 3)
    breaker.succeed(late[0])
    assert breaker.state is BreakerState.OPEN
    clock.now += 10
    probe = breaker.begin()
    breaker.fail(late[1])
    breaker.abandon(late[2])
    assert breaker.wait_s() > 0, "the probe is still the only one"
    breaker.succeed(probe)
    assert breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize(("failures", "open_s"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_settings_that_cannot_work(failures: int, open_s: float) -> None:
    with pytest.raises(ConfigError, match="must be"):
        CircuitBreaker(failures, open_s)
