"""Refuses at the door a search that could not be answered in time any more.

What a search costs beside the engine, which keeps deadlines itself, is learned from recent ones.
It is scaled by how many searches shared each worker thread when the search came, so that a wait
in the crowd is not taken for work. While a thread is free nothing is refused: an estimate that is
too high is always corrected by the next searches.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

SMOOTHING = 0.1


class Doorkeeper:
    """Counts the searches inside and knows what they cost. Used on one event loop."""

    def __init__(self, worker_threads: int) -> None:
        self._worker_threads = worker_threads
        self._inside = 0
        self._cost_s = 0.0

    def expected_s(self) -> float:
        """Seconds that one more search will take beside the engine; 0 while a thread is free."""
        if self._inside < self._worker_threads:
            return 0.0
        return self._cost_s * self._crowd(self._inside + 1)

    @contextmanager
    def enter(self) -> Generator[int, None, None]:
        """Count a search; gives how many are inside with it."""
        self._inside += 1
        try:
            yield self._inside
        finally:
            self._inside -= 1

    def learn(self, seconds: float, inside: int) -> None:
        """A search that came as one of `inside` took so long beside the engine."""
        self._cost_s += SMOOTHING * (seconds / self._crowd(inside) - self._cost_s)

    def _crowd(self, inside: int) -> float:
        return max(1.0, inside / self._worker_threads)
