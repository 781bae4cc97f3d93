"""Objectives: what holds, what is broken, and files that are wrong."""

from pathlib import Path
from typing import Any

import pytest

from index.errors import ConfigError
from loadtest.slo import DEFAULT_FILE, Objectives, check, read_objectives


def figures(**changes: Any) -> dict[str, Any]:
    search = {"p50_ms": 10.0, "p95_ms": 20.0, "p99_ms": 40.0, "max_ms": 80.0}
    shares = {"degraded_share": 0.0, "refused_share": 0.01, "error_share": 0.0}
    return {
        "knee_per_s": 100.0,
        "unexplained_errors": 0,
        "memory": {"ci95": None},
        "phases": [{"phase": "50%", "kinds": {"search": search | shares}}],
    } | changes


def objective(**bounds: Any) -> Objectives:
    return Objectives.model_validate(
        {"objective": [{"phases": ["50%", "80%"], "kind": "search", **bounds}]}
    )


def test_the_objectives_that_come_with_the_package_are_read():
    assert read_objectives(DEFAULT_FILE).run.unexplained_errors == 0


@pytest.mark.parametrize(
    ("bounds", "held"),
    [
        ({"p99_ms": 40.0}, [True]),
        ({"p99_ms": 39.9}, [False]),
        ({"p50_ms": 11, "error_share": 0}, [True, True]),
        ({"refused_share": 0.005, "degraded_share": 0}, [True, False]),
    ],
)
def test_bounds_of_a_phase(bounds: dict[str, float], held: list[bool]):
    assert sorted(one.held for one in check(objective(**bounds), figures())) == sorted(held)


def test_a_phase_without_answers_breaks_its_latency():
    found = figures()
    found["phases"][0]["kinds"]["search"]["p99_ms"] = None
    [one] = check(objective(p99_ms=50), found)
    assert not one.held


def test_bounds_of_the_run():
    own = Objectives.model_validate({"run": {"unexplained_errors": 0, "knee_per_s": 120}})
    assert [one.held for one in check(own, figures())] == [True, False]
    assert [one.held for one in check(own, figures(unexplained_errors=1))] == [False, False]
    assert len(check(own, figures(knee_per_s=None))) == 1


@pytest.mark.parametrize(("interval", "held"), [([-1, 9], True), ([11, 30], False)])
def test_memory_grows_when_all_of_the_interval_does(interval: list[float], held: bool):
    own = Objectives.model_validate({"run": {"memory_mb_per_hour": 10}})
    found = figures(memory={"ci95": interval}, phases=[{"phase": "soak", "kinds": {}}])
    assert [one.held for one in check(own, found)] == [held]
    assert not check(own, figures(memory={"ci95": interval}))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[run", "is not TOML"),
        ("[run]\nspeed = 1\n", "run.speed"),
        ('[[objective]]\nphases = ["x"]\n', "objective.0.kind"),
        ('[[objective]]\nphases = ["x"]\nkind = "search"\np99_ms = -1\n', "p99_ms"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_is_told_in_a_line(tmp_path: Path, text: str | None, told: str):
    file = tmp_path / "own.toml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own\.toml") as error:
        read_objectives(file)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
