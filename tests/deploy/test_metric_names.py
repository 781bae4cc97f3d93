"""Dashboards and alerts ask for metrics, and labels of them, that running programs export."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from index.drift import Drift
from server.keywords.breaker import BreakerState
from server.keywords.llm import LlmStats
from server.keywords.llm_metrics import LlmCollector
from server.upkeep import UpkeepCollector, UpkeepStatus

DEPLOY = Path(__file__).parents[2] / "deploy"
ELSEWHERE = {
    "up": {"job", "instance"},
    "ALERTS": {"alertstate", "alertname"},
    "node_filesystem_avail_bytes": {"mountpoint"},
    "node_filesystem_size_bytes": {"mountpoint"},
}
"""Of Prometheus itself and of its node exporter."""
WAITING_S = 120.0
ABSENT = {
    "onesearch_sidecar_gain",
    "onesearch_sidecar_training_share",
    "onesearch_sidecar_training_loss",
    "onesearch_sidecar_training_reward",
    "onesearch_generation_change_seconds",
}
"""Without a sample before the first round or change: their labels are not known here."""
_TEXT = re.compile(r'"[^"]*"')
_NAME = re.compile(r"(?<![\w$.])([a-zA-Z_]\w*)(?!\w*\s*\()")
_WORDS = {"by", "or", "and", "on", "ignoring", "without", "unless"}
_BY = re.compile(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)")
_MATCHERS = re.compile(r"\{([^}]*)\}")
_RANGE = re.compile(r"\[[^\]]*\]")


class Asked(NamedTuple):
    """What an expression names."""

    metrics: set[str]
    labels: set[str]


def asked(expression: str) -> Asked:
    """Names of metrics and labels in a PromQL expression."""
    bare = _RANGE.sub("", _TEXT.sub('""', expression))
    labels: set[str] = set()
    for group in (*_BY.findall(bare), *_MATCHERS.findall(bare)):
        labels |= set(re.findall(r"[a-zA-Z_]\w*", group))
    bare = _MATCHERS.sub("", _BY.sub(" ", bare))
    return Asked({name for name in _NAME.findall(bare) if name not in _WORDS}, labels)


def expressions() -> dict[str, str]:
    """Where it stands → the expression: every panel, every annotation, every alert."""
    found: dict[str, str] = {}
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                where = f"{path.stem}: {panel['title']} {target['refId']}"
                found[where] = target["expr"].replace("$__rate_interval", "1m")
        for note in board["annotations"]["list"]:
            found[f"{path.stem}: {note['name']}"] = note["expr"]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            found[f"alert {rule['alert']}"] = rule["expr"]
    return found


EXPRESSIONS = expressions()


def told(texts: Iterable[str]) -> dict[str, set[str]]:
    """Metric → labels of its samples, of expositions; a metric without samples has none."""
    found: dict[str, set[str]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            found.setdefault(family.name, set())
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def exported(graph: Any, scraped: Any) -> dict[str, set[str]]:
    """What gateway, worker and sidecar export once everything has happened once, and what needs a
    language model or many new items."""
    gateway, until = graph.gateway.url, 0
    change = {"items": [{"item_id": "i1", "stock": 7}]}
    assert httpx.patch(f"{gateway}/v1/items", json=change, timeout=60).status_code == 200
    while "onesearch_shadow_latency_ratio" not in scraped(gateway):
        body = {"query": f"white lamp {until}"}
        assert httpx.post(f"{gateway}/v1/search", json=body, timeout=60).status_code == 200
        until += 1
        assert until < 200, "no search was compared with the challenger"
    registry = CollectorRegistry()
    nothing = {"answered": 0}
    stats = LlmStats(nothing, 0.0, nothing, nothing, 0, 0, 0, BreakerState.CLOSED, 0, "none")
    registry.register(LlmCollector(lambda: stats))
    drift = Drift(1, 1.0, 1.0, 1, 1.0, 1, 1.0, 0)
    upkeep: Any = SimpleNamespace(status=UpkeepStatus(0, 0, "", drift))
    registry.register(UpkeepCollector(upkeep))
    urls = (gateway, graph.worker.url, graph.sidecar.url)
    return told([*(scraped(url) for url in urls), generate_latest(registry).decode()])


def test_the_reading_of_expressions():
    found = asked('sum by (a, le) (rate(x_total{b="y", c=~"5.."}[5m])) / scalar(z{}) > 0.5 or up')
    assert found == Asked({"x_total", "z", "up"}, {"a", "le", "b", "c"})


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_what_is_asked_for_is_exported(where: str, exported: dict[str, set[str]]):
    known = exported | ELSEWHERE
    metrics, labels = asked(EXPRESSIONS[where])
    assert metrics, EXPRESSIONS[where]
    assert metrics <= set(known), f"{metrics - set(known)} is exported by nobody"
    if not metrics & ABSENT:
        there = set().union(*(known[name] for name in metrics)) | {"job", "instance"}
        assert labels <= there, f"{labels - there} is a label of none of {sorted(metrics)}"


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_expression_can_be_parsed(where: str):
    promql_parser.parse(EXPRESSIONS[where])


def test_prometheus_understands_every_expression(tmp_path: Path):
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    rules = [
        {"record": f"expression:{number}", "expr": expression}
        for number, expression in enumerate(EXPRESSIONS.values())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    done = subprocess.run([program, "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_dashboard_has_few_panels_each_with_a_question_or_a_name():
    seen: set[str] = set()
    for path in (DEPLOY / "grafana" / "dashboards").glob("*.json"):
        board = json.loads(path.read_text())
        assert board["uid"] not in seen
        seen.add(board["uid"])
        assert len(board["panels"]) <= 12, path.name
        for panel in board["panels"]:
            assert panel["description"] and panel["datasource"]["uid"] == "prometheus"
            assert panel["title"].endswith("?") == (panel["type"] == "timeseries"), panel["title"]


def test_grafana_reads_prometheus_of_the_graph(compose: Any):
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert [source["uid"], source["url"]] == ["prometheus", "http://prometheus:9090"]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "onesearch.yml").read_text())[
        "providers"
    ]
    mounted = [
        volume.split(":")[1] for volume in compose.resolved["services"]["grafana"]["volumes"]
    ]
    assert provider["options"]["path"] in mounted


def test_prometheus_scrapes_the_services_at_their_ports(compose: Any):
    services = compose.resolved["services"]
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    for job in jobs:
        [found] = job["dns_sd_configs"]
        for name in found["names"]:
            assert str(found["port"]) in json.dumps(services[name]["healthcheck"]["test"]), name
