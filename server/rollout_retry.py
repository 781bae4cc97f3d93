"""When to try again what failed: later each time."""

from __future__ import annotations

import time

RETRY_S = 5.0
MAX_RETRY_S = 300.0


class Retry:
    """Pauses from RETRY_S to MAX_RETRY_S, doubled each time."""

    def __init__(self) -> None:
        self.reset()

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._at

    def reset(self) -> None:
        """At once."""
        self._at, self._pause_s = 0.0, RETRY_S

    def wait(self) -> None:
        """It failed."""
        self._at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, MAX_RETRY_S)
