"""What a paid or shared service may be asked for: requests and tokens, per minute and per day.

Tokens are reserved before a call at the most it can cost and settled afterwards at what it did
cost, so calls under way count. A window is rolling: in no period of its length is more than its
limit spent. It is kept in SLOTS parts, so what was spent comes free up to one part later than it
could.

The count is this process's own and starts at nothing with it: several workers share a limit by
being given a part of it each.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from index.errors import ConfigError

MINUTE_S = 60.0
DAY_S = 86_400.0
SLOTS = 60
LEAST_WAIT_S = 0.001


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room that was taken for a call. `slots`: where each window has noted it."""

    tokens: int
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a call may not begin, and in how many seconds it may. None: never, it is too large."""

    message: str
    wait_s: float | None


class Window:
    """At most `limit` in any `period_s`. Knows no clock: `now` is an argument, and never falls."""

    def __init__(self, name: str, limit: int, period_s: float) -> None:
        if limit < 1:
            raise ConfigError(f"{name} is {limit}, it must be at least 1")
        self.name = name
        self.limit = limit
        self._slot_s = period_s / SLOTS
        self._used = 0
        self._amounts: deque[tuple[int, int]] = deque()

    def used(self, now: float) -> int:
        """What is spent or reserved in the period that ends now."""
        self._forget(now)
        return self._used

    def wait_s(self, amount: int, now: float) -> float | None:
        """How long until `amount` fits: 0 if it does, None if it never will."""
        if amount > self.limit:
            return None
        missing = self.used(now) + amount - self.limit
        for slot, spent in self._amounts:
            if missing <= 0:
                break
            missing -= spent
            if missing <= 0:
                # Rounding must not turn a wait into none.
                return max(LEAST_WAIT_S, (slot + SLOTS + 1) * self._slot_s - now)
        return 0.0

    def add(self, amount: int, now: float) -> int:
        """Notes `amount` as spent now; the slot it is noted in."""
        slot = int(now // self._slot_s)
        self._note(slot, amount)
        return slot

    def correct(self, slot: int, amount: int, now: float) -> None:
        """Adds `amount`, which may be negative, to what was noted in `slot`, if it still counts."""
        self._forget(now)
        if self._amounts and slot >= self._amounts[0][0]:
            self._note(slot, amount)

    def _note(self, slot: int, amount: int) -> None:
        self._used += amount
        for place in range(len(self._amounts) - 1, -1, -1):
            known, spent = self._amounts[place]
            if known == slot:
                self._amounts[place] = (slot, spent + amount)
                return
            if known < slot:
                self._amounts.insert(place + 1, (slot, amount))
                return
        self._amounts.appendleft((slot, amount))

    def _forget(self, now: float) -> None:
        oldest = int(now // self._slot_s) - SLOTS
        while self._amounts and self._amounts[0][0] < oldest:
            self._used -= self._amounts.popleft()[1]


class Budget:
    """The limits of one service; None is no limit. For one event loop; not for several threads."""

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        tokens_per_day: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._requests = _windows(("requests_per_minute", requests_per_minute, MINUTE_S))
        self._tokens = _windows(
            ("tokens_per_minute", tokens_per_minute, MINUTE_S),
            ("tokens_per_day", tokens_per_day, DAY_S),
        )

    def reserve(self, tokens: int) -> Reservation | Shortage:
        """Room for one request of at most `tokens`, or what is short. Takes all of it or none."""
        now = self._clock()
        amounts = [(window, 1) for window in self._requests]
        amounts += [(window, tokens) for window in self._tokens]
        problem = self.too_large(tokens)
        if problem is not None:
            return Shortage(problem, None)
        longest_s, scarce = 0.0, None
        for window, amount in amounts:
            wait_s = window.wait_s(amount, now) or 0.0
            if wait_s > longest_s:
                longest_s, scarce = wait_s, window
        if scarce is not None:
            return Shortage(f"{scarce.name} ({scarce.limit}) is spent", longest_s)
        return Reservation(tokens, tuple(window.add(amount, now) for window, amount in amounts))

    def too_large(self, tokens: int) -> str | None:
        """Why a request of so many tokens can never be made; None if it can."""
        for window in self._tokens:
            if tokens > window.limit:
                return f"one request may need {tokens} tokens, {window.name} is {window.limit}"
        return None

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """The request did cost `tokens`: the difference comes free, or is counted on top."""
        now = self._clock()
        for window, slot in zip(
            self._tokens, reservation.slots[len(self._requests) :], strict=True
        ):
            window.correct(slot, tokens - reservation.tokens, now)


def _windows(*limits: tuple[str, int | None, float]) -> list[Window]:
    return [Window(name, limit, period_s) for name, limit, period_s in limits if limit is not None]
