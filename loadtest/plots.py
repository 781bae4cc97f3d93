"""Plots of a run, as SVG: latency over time, the knee's steps, memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.results import STEP_PREFIX, Run

_SIZE_INCHES = (9.0, 3.6)
_WINDOW_S = 5.0


def draw_plots(run: Run, out: Path) -> list[Path]:
    """The files written; what a run has no data for is left out. Needs matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    # The same records give the same file, and text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "onesearch", "svg.fonttype": "none"})
    from matplotlib.figure import Figure

    drawn: list[Path] = []
    for name, draw in (("latency", _latency), ("knee", _knee), ("memory", _memory)):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        if draw(run, figure.subplots()):
            drawn.append(out / f"{name}.svg")
            figure.savefig(drawn[-1], format="svg", metadata={"Date": None})
    return drawn


def _latency(run: Run, plot: Any) -> bool:
    """p50 and p99 of searches in windows, by phase; swaps are lines."""
    start = run.phases[0]["began"]
    for place, phase in enumerate(run.phases):
        found = run.requests.get((phase["phase"], "search"))
        if found is None or phase["phase"].startswith(STEP_PREFIX):
            continue
        times, p50, p99 = _windows(found.due, found.latencies)
        colour = f"C{place % 10}"
        plot.plot(times - start, p99, color=colour, label=phase["phase"])
        plot.plot(times - start, p50, color=colour, linestyle=":")
    for swap in run.swaps:
        plot.axvline(swap["began"] - start, color="grey", linewidth=0.5)
    plot.set(yscale="log", xlabel="seconds", ylabel="ms", title="searches: p99, and p50 dotted")
    plot.legend(fontsize=7, ncols=4)
    plot.grid(alpha=0.3)
    return True


def _windows(due: Sequence[float], latencies: Sequence[float]) -> tuple[Any, Any, Any]:
    at, values = np.asarray(due), np.asarray(latencies) * 1000
    if not len(at):
        return at, at, at
    window = np.floor((at - at.min()) / _WINDOW_S).astype(np.int64)
    known = np.unique(window)
    quantiles = np.asarray([np.quantile(values[window == one], (0.5, 0.99)) for one in known])
    return at.min() + (known + 0.5) * _WINDOW_S, quantiles[:, 0], quantiles[:, 1]


def _knee(run: Run, plot: Any) -> bool:
    if not run.steps:
        return False
    for held, marker in ((True, "o"), (False, "x")):
        steps = [one for one in run.steps if one["held"] is held]
        plot.plot(
            [one["rate"] for one in steps],
            [100 * (1 - one["share"]) for one in steps],
            marker,
            label="held" if held else "did not hold",
        )
    if run.knee:
        plot.axvline(run.knee, color="grey", label=f"knee: {run.knee:.0f}/s")
    plot.set(xlabel="searches per second", ylabel="% late, degraded or refused", title="the knee")
    plot.legend(fontsize=8)
    plot.grid(alpha=0.3)
    return True


def _memory(run: Run, plot: Any) -> bool:
    at, server, redis = run.memory()
    if len(at) < 2:
        return False
    minutes = (at - at[0]) / 60
    plot.plot(minutes, server, label="server and its children")
    if redis.any():
        plot.plot(minutes, redis, label="Redis")
    plot.set(xlabel="minutes", ylabel="MB", title="memory")
    plot.legend(fontsize=8)
    plot.grid(alpha=0.3)
    return True
