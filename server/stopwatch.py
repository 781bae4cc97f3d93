"""How long each stage of a search took."""

from __future__ import annotations

import time

from server.metrics import Metrics


class Stopwatch:
    """Milliseconds of each stage, in the order they ended."""

    def __init__(self, metrics: Metrics) -> None:
        """`metrics`: what counts the stages, and traces them where there are traces."""
        self._metrics = metrics
        self._start = self._last = time.perf_counter()
        self.timings_ms: dict[str, float] = {}

    def lap(self, stage: str, **parts: float) -> None:
        """End a stage; the next one begins. `parts`: seconds of what happened in it, in turn, for
        traces."""
        now = time.perf_counter()
        seconds = now - self._last
        self._metrics.stages.labels(stage).observe(seconds)
        self.timings_ms[stage] = round(seconds * 1000, 3)
        if self._metrics.traces is not None:
            self._metrics.traces.stage(stage, seconds, parts)
        self._last = now

    def stop(self) -> dict[str, float]:
        """All stages and the total."""
        total_ms = (time.perf_counter() - self._start) * 1000
        return self.timings_ms | {"total": round(total_ms, 3)}
