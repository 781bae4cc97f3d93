"""What a run left in its folder, as figures: by phase and kind of request, by step, over time.

records.jsonl   from the process that sent the load: see `loadtest.shoppers`
samples.jsonl   from the one that watched: processor seconds and memory of server and load
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from index.errors import DataError
from loadtest.outcomes import EXPLAINED, is_answered, is_degraded, is_unexplained

RECORDS, SAMPLES, REPORT, PLAN = "records.jsonl", "samples.jsonl", "report.json", "plan.json"
STEP_PREFIX = "step "
SWAPS = "swaps"


@dataclass(slots=True)
class Requests:
    """Requests of one kind in one phase; seconds, in the order in which they ended. `due`: of each
    answered one, on the monotonic clock; `latencies` beside them."""

    due: list[float] = field(default_factory=list[float])
    latencies: list[float] = field(default_factory=list[float])
    late: list[float] = field(default_factory=list[float])
    outcomes: Counter[str] = field(default_factory=Counter[str])

    def share(self, count: int) -> float:
        """Of all that were due."""
        total = self.outcomes.total()
        return count / total if total else 0.0

    def figures(self) -> dict[str, Any]:
        """Milliseconds and shares. Quantiles are of answers, degraded ones too; NaN without any."""
        counts = self.outcomes
        return {
            "requests": counts.total(),
            **{f"p{level}_ms": _ms(self.latencies, level / 100) for level in (50, 95, 99)},
            "max_ms": _ms(self.latencies, 1.0),
            "degraded_share": self.share(sum(counts[one] for one in counts if is_degraded(one))),
            "refused_share": self.share(sum(counts[one] for one in counts if one in EXPLAINED)),
            "error_share": self.share(sum(counts[one] for one in counts if is_unexplained(one))),
            "sent_late_p99_ms": _ms(self.late, 0.99),
            "outcomes": dict(counts.most_common()),
        }


@dataclass(slots=True)
class Run:
    """A run's records. `phases`: as told, in their order; `requests` by phase and kind."""

    folder: Path
    phases: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    requests: dict[tuple[str, str], Requests] = field(
        default_factory=dict[tuple[str, str], Requests]
    )
    swaps: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    knee: float | None = None
    steps: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    samples: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises DataError where there is no run, or one that cannot be read."""
        run = cls(folder)
        try:
            for line in (folder / RECORDS).read_bytes().splitlines():
                run._take(orjson.loads(line))
            if (folder / SAMPLES).exists():
                run.samples = [
                    orjson.loads(line) for line in (folder / SAMPLES).read_bytes().splitlines()
                ]
        except OSError as error:
            raise DataError(
                f"{folder} holds no load test: {RECORDS} cannot be read ({error.strerror})"
            ) from None
        except (orjson.JSONDecodeError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / RECORDS} is damaged: {error}") from None
        if not run.phases:
            raise DataError(f"{folder / RECORDS} has no finished phase")
        return run

    def _take(self, record: Any) -> None:
        if isinstance(record, list):
            phase, kind, due, latency, outcome, late = record
            found = self.requests.setdefault((phase, kind), Requests())
            found.outcomes[outcome] += 1
            found.late.append(late)
            if latency is not None and is_answered(outcome):
                found.due.append(due)
                found.latencies.append(latency)
        elif "phase" in record:
            self.phases.append(record)
        elif "knee" in record:
            self.knee, self.steps = record["knee"], record["steps"]
        elif "swap" in record:
            self.swaps.append(record)

    def unexplained(self) -> dict[str, int]:
        """Failures that are neither answers nor announced refusals, by outcome."""
        total: Counter[str] = Counter()
        for found in self.requests.values():
            total.update({one: n for one, n in found.outcomes.items() if is_unexplained(one)})
        return dict(total)

    def processor(self, began: float, ended: float) -> dict[str, float]:
        """Cores that server and load kept busy between two instants; empty where nobody looked."""
        inside = [one for one in self.samples if began <= one["at"] <= ended]
        if len(inside) < 2:
            return {}
        seconds = inside[-1]["at"] - inside[0]["at"]
        return {
            f"{name}_cores": round((inside[-1][name] - inside[0][name]) / seconds, 3)
            for name in ("server", "load")
            if name in inside[0]
        }

    def memory(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Instants; megabytes of the server and its children without Redis; and of Redis."""
        known = [
            (one["at"], one["memory_mb"], one.get("redis_mb", 0.0))
            for one in self.samples
            if "memory_mb" in one
        ]
        found = np.asarray(known, np.float64).reshape(-1, 3)
        return found[:, 0], found[:, 1] - found[:, 2], found[:, 2]


def summary(run: Run) -> dict[str, Any]:
    """The report's figures: what `report.json` holds and objectives are checked against."""
    phases: list[dict[str, Any]] = []
    for phase in run.phases:
        if phase["phase"].startswith(STEP_PREFIX):
            continue
        kinds: Mapping[str, Any] = {
            kind: found.figures()
            for (name, kind), found in run.requests.items()
            if name == phase["phase"]
        }
        phases.append(
            {
                "phase": phase["phase"],
                "searches_per_s": round(phase["rate"], 1),
                "seconds": round(phase["ended"] - phase["began"], 1),
                **run.processor(phase["began"], phase["ended"]),
                "kinds": kinds,
            }
        )
    swaps = run.requests.get((SWAPS, "swap"))
    at, server_mb, redis_mb = run.memory()
    return {
        "knee_per_s": None if run.knee is None else round(run.knee, 1),
        "steps": run.steps,
        "phases": phases,
        "swaps": None if swaps is None else swaps.figures(),
        "unexplained": run.unexplained(),
        "unexplained_errors": sum(run.unexplained().values()),
        "memory": memory_slope(at, server_mb),
        "redis_memory": memory_slope(at, redis_mb),
    }


WARM_UP_SHARE = 0.2
BATCHES = 16
_STUDENT_T = 2.145
"""97.5 % quantile of Student's t with BATCHES − 2 degrees of freedom."""


def memory_slope(at: Sequence[float] | NDArray[np.float64], mb: Any) -> dict[str, Any]:
    """Megabytes an hour by least squares with a 95 % interval, over all but the first fifth.

    Neighbouring samples resemble each other, so the line goes through the means of BATCHES equal
    stretches, which hardly do. Without enough samples `mb_per_hour` and `ci95` are None."""
    instants, values = np.asarray(at, np.float64), np.asarray(mb, np.float64)
    known = {"samples": len(values), "mb_per_hour": None, "ci95": None}
    if not len(values):
        return known
    known |= {"first_mb": round(float(values[0]), 1), "last_mb": round(float(values[-1]), 1)}
    late = instants >= instants[0] + WARM_UP_SHARE * (instants[-1] - instants[0])
    instants, values = instants[late], values[late]
    if len(values) < 2 * BATCHES:
        return known
    hours = [float(np.mean(part)) / 3600 for part in np.array_split(instants, BATCHES)]
    means = [float(np.mean(part)) for part in np.array_split(values, BATCHES)]
    place = np.asarray(hours) - np.mean(hours)
    spread = float((place**2).sum())
    centred = np.asarray(means) - np.mean(means)
    slope = float((place * centred).sum()) / spread
    left = float(((centred - slope * place) ** 2).sum())
    half = _STUDENT_T * math.sqrt(left / (BATCHES - 2) / spread)
    return known | {
        "mb_per_hour": round(slope, 2),
        "ci95": [round(slope - half, 2), round(slope + half, 2)],
    }


def _ms(seconds: Sequence[float], share: float) -> float | None:
    return round(float(np.quantile(seconds, share)) * 1000, 2) if seconds else None
