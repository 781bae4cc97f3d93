"""A circuit breaker: a service that keeps failing is left alone for a while.

    closed ──(failures in a row)──▶ open ──(open_s passed)──▶ half-open ──(probe succeeds)──▶ closed
                                     ▲                            │
                                     └───────(probe fails)────────┘

Invariants. Half-open lets one call through at a time, the probe. What a call of an earlier state
brings home late changes nothing: each call carries the number of the era it began in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

from index.errors import ConfigError

DEFAULT_FAILURES = 5
DEFAULT_OPEN_S = 30.0
# While a probe is under way nobody knows how long it takes.
PROBE_WAIT_S = 1.0


class BreakerState(StrEnum):
    """Closed: calls go through. Open: none does. Half-open: one at a time, to find out."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """Counts failures in a row. For one event loop; not for several threads.

    `failures`: how many in a row open it. `open_s`: how long it then stays open. `opened` counts
    how often it opened.
    """

    def __init__(
        self,
        failures: int = DEFAULT_FAILURES,
        open_s: float = DEFAULT_OPEN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if failures < 1:
            raise ConfigError(f"breaker failures is {failures}, it must be at least 1")
        if not open_s > 0:
            raise ConfigError(f"breaker open_s is {open_s}, it must be above 0")
        self.opened = 0
        self._failures = failures
        self._open_s = open_s
        self._clock = clock
        self._in_a_row = 0
        self._era = 0
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> BreakerState:
        if self._open_until is None:
            return BreakerState.CLOSED
        if self._probing or self._clock() >= self._open_until:
            return BreakerState.HALF_OPEN
        return BreakerState.OPEN

    def wait_s(self) -> float:
        """How long a call has to wait; 0 if it may begin now."""
        if self._open_until is None:
            return 0.0
        if self._probing:
            return min(PROBE_WAIT_S, self._open_s)
        return max(0.0, self._open_until - self._clock())

    def begin(self) -> int:
        """A call begins, which `wait_s` must have allowed. The era is handed back at its end."""
        assert self.wait_s() == 0, "the breaker does not let this call through"
        self._probing = self._open_until is not None
        return self._era

    def succeed(self, era: int) -> None:
        """The call was answered."""
        if era == self._era:
            self._in_a_row = 0
            if self._open_until is not None:
                self._open_until = None
                self._new_era()

    def fail(self, era: int) -> None:
        """The call failed in a way that speaks against the service."""
        if era != self._era:
            return
        self._in_a_row += 1
        if self._open_until is not None or self._in_a_row >= self._failures:
            self._open_until = self._clock() + self._open_s
            self.opened += 1
            self._new_era()

    def abandon(self, era: int) -> None:
        """The call ended without showing anything, e.g. it was cancelled."""
        if era == self._era:
            self._probing = False

    def _new_era(self) -> None:
        self._era += 1
        self._in_a_row = 0
        self._probing = False
