"""A load test as data: where, how fast, for how long, and what else happens meanwhile.

The process that sends the load reads a plan from a file, so a run can be read later and made again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

MIXED_SHARE = 0.5
"""Of the knee: what a mixed phase offers, so that there is room for what else happens."""
LEVELS = (0.5, 0.8, 1.0, 1.5)
"""Shares of the knee at which latencies are told."""
RUN_S = 600.0


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of even load. `rate`: searches per second; where it is None, `share` of the knee
    that was found before. `cold`: no query is asked twice. Shares are of searches: `clicks` are
    followed by an event, `look_ups` by an item's page. `swap_every_s` 0: no swaps."""

    name: str
    seconds: float
    rate: float | None = None
    share: float = 1.0
    cold: bool = False
    clicks: float = 0.0
    look_ups: float = 0.0
    changes_per_s: float = 0.0
    swap_every_s: float = 0.0


@dataclass(frozen=True, slots=True)
class KneeSearch:
    """Steps of load: from `first_rate`, each `factor` times the one before, until `bound_s` does
    not hold; then `bisections` between the last that held and the first that did not."""

    bound_s: float = 0.05
    share: float = 0.99
    least_rate: float = 4.0
    first_rate: float = 30.0
    most_rate: float = 2000.0
    factor: float = 1.5
    bisections: int = 4
    step_s: float = 8.0


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a run. `knee` is searched for after the phase of that name, None: never. `versions`:
    generations that swaps go round."""

    url: str
    phases: tuple[Phase, ...]
    knee: KneeSearch | None = None
    knee_after: str = ""
    beam_width: int = 32
    seed: int = 0
    dataset: str = ""
    queries: str = ""
    versions: tuple[str, ...] = ()

    def write(self, file: Path) -> None:
        """As JSON."""
        file.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2))

    @classmethod
    def read(cls, file: Path) -> Plan:
        """What `write` wrote."""
        found: dict[str, Any] = orjson.loads(file.read_bytes())
        knee = found.pop("knee")
        fields: dict[str, Any] = found | {
            "phases": tuple(Phase(**phase) for phase in found["phases"]),
            "versions": tuple(found["versions"]),
            "knee": None if knee is None else KneeSearch(**knee),
        }
        return cls(**fields)


def mixed_phases(scale: float, *, swaps: bool, changes: bool) -> tuple[Phase, ...]:
    """The scenario of ten minutes, times `scale`: cold, warm, (the knee), its levels, mixed."""
    cold = Phase("cold", 20 * scale, 20.0, cold=True)
    warm = Phase("warm", 20 * scale, 40.0)
    levels = tuple(Phase(f"{share:.0%}", 45 * scale, share=share) for share in LEVELS)
    mixed = Phase(
        "mixed",
        220 * scale,
        share=MIXED_SHARE,
        clicks=0.2,
        look_ups=0.2,
        changes_per_s=1.0 if changes else 0.0,
        swap_every_s=40 * scale if swaps else 0.0,
    )
    return (cold, warm, *levels, mixed)


def knee_phases(scale: float) -> tuple[Phase, ...]:
    """Only what the knee needs: warm up, (the knee), its levels."""
    levels = tuple(Phase(f"{share:.0%}", 15 * scale, share=share) for share in LEVELS)
    return (Phase("warm", 10 * scale, 40.0), *levels)


def soak_phases(seconds: float, rate: float, *, changes: bool) -> tuple[Phase, ...]:
    """One long even phase with everything but swaps."""
    soak = Phase(
        "soak",
        seconds,
        rate,
        clicks=0.2,
        look_ups=0.2,
        changes_per_s=0.2 if changes else 0.0,
    )
    return (soak,)
