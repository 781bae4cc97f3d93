"""Objectives of a load test, read from TOML and checked against a run's figures."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.errors import ConfigError

DEFAULT_FILE = Path(__file__).with_name("slo.toml")


class Objective(BaseModel):
    """Upper bounds for one kind of request in some phases; None: not bounded."""

    model_config = ConfigDict(extra="forbid")

    phases: list[str] = Field(min_length=1)
    kind: str
    p50_ms: float | None = Field(default=None, gt=0)
    p95_ms: float | None = Field(default=None, gt=0)
    p99_ms: float | None = Field(default=None, gt=0)
    max_ms: float | None = Field(default=None, gt=0)
    degraded_share: float | None = Field(default=None, ge=0, le=1)
    refused_share: float | None = Field(default=None, ge=0, le=1)
    error_share: float | None = Field(default=None, ge=0, le=1)


class OfRun(BaseModel):
    """Bounds of the whole run. `knee_per_s` is a lower one; the memory's slope breaks its own only
    when all of its interval is above."""

    model_config = ConfigDict(extra="forbid")

    unexplained_errors: int | None = Field(default=None, ge=0)
    knee_per_s: float | None = Field(default=None, gt=0)
    memory_mb_per_hour: float | None = None


class Objectives(BaseModel):
    """A whole file."""

    model_config = ConfigDict(extra="forbid")

    run: OfRun = OfRun()
    objective: list[Objective] = []


@dataclass(frozen=True, slots=True)
class Check:
    """One bound and what was found. `found` None: there was nothing to measure."""

    what: str
    bound: float
    found: float | None
    held: bool


def read_objectives(file: Path) -> Objectives:
    """Raises ConfigError that names file and field."""
    try:
        return Objectives.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"--slo {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--slo {file} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"--slo {file}: {place}: {first['msg']}") from None


def check(objectives: Objectives, figures: Mapping[str, Any]) -> list[Check]:
    """Every bound that the run's figures (`loadtest.results.summary`) can be held against."""
    return [*_of_run(objectives.run, figures), *_of_phases(objectives, figures)]


def _of_run(bounds: OfRun, figures: Mapping[str, Any]) -> Iterator[Check]:
    if bounds.unexplained_errors is not None:
        found = figures["unexplained_errors"]
        yield Check(
            "unexplained errors",
            bounds.unexplained_errors,
            found,
            found <= bounds.unexplained_errors,
        )
    knee = figures["knee_per_s"]
    if bounds.knee_per_s is not None and knee is not None:
        yield Check(
            "knee, searches/s, at least", bounds.knee_per_s, knee, knee >= bounds.knee_per_s
        )
    memory = figures["memory"]
    if bounds.memory_mb_per_hour is not None and memory["ci95"] is not None and _is_soak(figures):
        low = memory["ci95"][0]
        yield Check(
            "memory, MB/h, lower end of the interval",
            bounds.memory_mb_per_hour,
            low,
            low <= bounds.memory_mb_per_hour,
        )


def _is_soak(figures: Mapping[str, Any]) -> bool:
    """Memory that is still filling its caches in a few minutes of changing load has no slope."""
    return any(phase["phase"] == "soak" for phase in figures["phases"])


def _of_phases(objectives: Objectives, figures: Mapping[str, Any]) -> Iterator[Check]:
    for objective in objectives.objective:
        bounds = objective.model_dump(exclude={"phases", "kind"}, exclude_none=True)
        for phase in figures["phases"]:
            found = phase["kinds"].get(objective.kind)
            if phase["phase"] not in objective.phases or found is None:
                continue
            for name, bound in bounds.items():
                value = found[name]
                held = value is not None and value <= bound
                yield Check(f"{phase['phase']} {objective.kind} {name}", bound, value, held)
