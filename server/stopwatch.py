"""How long each stage of a search took."""

from __future__ import annotations

import time

from server.metrics import Metrics


class Stopwatch:
    """Milliseconds of each stage, in the order they ended."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start = self._last = time.perf_counter()
        self.timings_ms: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """End a stage; the next one begins."""
        now = time.perf_counter()
        self._metrics.stages.labels(stage).observe(now - self._last)
        self.timings_ms[stage] = round((now - self._last) * 1000, 3)
        self._last = now

    def stop(self) -> dict[str, float]:
        """All stages and the total."""
        total_ms = (time.perf_counter() - self._start) * 1000
        return self.timings_ms | {"total": round(total_ms, 3)}
