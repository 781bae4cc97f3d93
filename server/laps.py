"""Where the time of a change of generation went, part by part."""

from __future__ import annotations

import time


class Laps:
    """Milliseconds of the parts of the change that is being made, or was made last. A part that
    comes twice adds up. Used on one event loop, by one change at a time."""

    def __init__(self) -> None:
        self._parts: dict[str, float] = {}
        self._last = time.perf_counter()

    def begin(self) -> None:
        """Forget the last change; the first part begins."""
        self._parts = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """A part has ended; the next one begins."""
        now = time.perf_counter()
        self._parts[part] = self._parts.get(part, 0.0) + (now - self._last) * 1000
        self._last = now

    @property
    def parts_ms(self) -> dict[str, float]:
        """In the order in which they ended."""
        return {part: round(ms, 3) for part, ms in self._parts.items()}
