"""The alert rules, evaluated by promtool over made-up series: each fires, and is silent when all
is well."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
SERIES = Path(__file__).with_name("alerts.yml")


def promtool(*arguments: object) -> None:
    """Run it. Skips where it is not installed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration():
    promtool("check", "config", RULES.with_name("prometheus.yml"))


def test_alerts_fire_and_are_silent():
    promtool("test", "rules", SERIES)


def test_every_alert_is_tried_and_says_where_to_look():
    rules = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]
    names = [rule["alert"] for rule in rules]
    assert len(set(names)) == len(names)
    tests = yaml.safe_load(SERIES.read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(names)
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(names)
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert {"summary", "look_at"} <= set(rule["annotations"]), rule["alert"]
    documented = (ROOT / "docs" / "deploy.md").read_text()
    assert [name for name in names if f"`{name}`" not in documented] == []
