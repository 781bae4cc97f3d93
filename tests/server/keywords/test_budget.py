"""Budgets, on a clock that the tests move; the rolling window against a list of all spendings."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import ConfigError
from server.keywords.budget import MINUTE_S, SLOTS, Budget, Reservation, Shortage, Window


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(0, 12)), max_size=60))
def test_no_rolling_minute_has_more_than_the_limit(steps: list[tuple[float, int]]) -> None:
    window, now, spent = Window("tokens", 10, MINUTE_S), 0.0, list[tuple[float, int]]()
    for step_s, amount in steps:
        now += step_s
        wait_s = window.wait_s(amount, now)
        if wait_s is None:
            assert amount > 10
            continue
        # Once the time named has passed it fits; it is never more than the window and one part.
        assert 0 <= wait_s <= MINUTE_S + MINUTE_S / SLOTS
        assert copy.deepcopy(window).wait_s(amount, now + wait_s + 1e-6) == 0
        if wait_s == 0:
            window.add(amount, now)
            spent.append((now, amount))
        assert sum(amount for at, amount in spent if at > now - MINUTE_S) <= 10


def test_a_spent_budget_says_which_and_for_how_long() -> None:
    clock = Clock()
    budget = Budget(requests_per_minute=2, tokens_per_minute=1000, clock=clock)
    assert isinstance(budget.reserve(100), Reservation)
    assert isinstance(budget.reserve(100), Reservation)
    shortage = budget.reserve(100)
    assert isinstance(shortage, Shortage)
    assert shortage.message == "requests_per_minute (2) is spent"
    assert shortage.wait_s is not None
    assert 60 <= shortage.wait_s <= 61
    clock.now += shortage.wait_s
    assert isinstance(budget.reserve(100), Reservation)


def test_what_was_not_used_comes_free() -> None:
    budget = Budget(tokens_per_minute=1000, clock=Clock())
    reservation = budget.reserve(900)
    assert isinstance(reservation, Reservation)
    assert isinstance(budget.reserve(200), Shortage), "calls under way count"
    budget.settle(reservation, 100)
    assert isinstance(budget.reserve(900), Reservation)


def test_what_was_used_beyond_the_reservation_is_counted() -> None:
    budget = Budget(tokens_per_minute=1000, clock=Clock())
    reservation = budget.reserve(100)
    assert isinstance(reservation, Reservation)
    budget.settle(reservation, 950)
    assert isinstance(budget.reserve(100), Shortage)


def test_a_settlement_that_comes_late_is_forgotten() -> None:
    clock = Clock()
    budget = Budget(tokens_per_minute=1000, clock=clock)
    reservation = budget.reserve(100)
    assert isinstance(reservation, Reservation)
    clock.now += 200
    budget.settle(reservation, 0)
    full = budget.reserve(1000)
    assert isinstance(full, Reservation)
    assert isinstance(budget.reserve(1), Shortage)


def test_the_day_outlasts_the_minute() -> None:
    clock = Clock()
    budget = Budget(tokens_per_minute=600, tokens_per_day=1000, clock=clock)
    assert isinstance(budget.reserve(600), Reservation)
    clock.now += 62
    shortage = budget.reserve(600)
    assert isinstance(shortage, Shortage)
    assert shortage.message == "tokens_per_day (1000) is spent"
    assert shortage.wait_s is not None
    assert shortage.wait_s > 80_000
    assert isinstance(budget.reserve(400), Reservation), "a shortage takes nothing"


def test_a_request_larger_than_the_budget_never_fits() -> None:
    shortage = Budget(tokens_per_minute=600).reserve(601)
    assert shortage == Shortage("one request may need 601 tokens, tokens_per_minute is 600", None)


def test_no_limits() -> None:
    budget = Budget()
    reservation = budget.reserve(10**9)
    assert isinstance(reservation, Reservation)
    budget.settle(reservation, 5)


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokens_per_day is 0"):
        Budget(tokens_per_day=0)
