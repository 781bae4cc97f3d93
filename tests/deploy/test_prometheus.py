"""A real Prometheus with the graph's configuration scrapes the graph and answers the dashboards.

Only discovery is replaced: by the addresses of the processes instead of DNS.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
WAITING_S = 120.0


def wait_until(holds: Callable[[], object]) -> None:
    until = time.monotonic() + WAITING_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.fixture(scope="module")
def prometheus(
    graph: Any, unused_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Generator[httpx.Client, None, None]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus has it)")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    own = {"gateway": graph.gateway, "worker": graph.worker, "sidecar": graph.sidecar}
    config["scrape_configs"] = [
        {
            "job_name": job["job_name"],
            "static_configs": [{"targets": [own[job["job_name"]].url.removeprefix("http://")]}],
        }
        for job in config["scrape_configs"]
        if job["job_name"] in own
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{unused_port}",
            ],
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{unused_port}", timeout=30) as client:
            wait_until(lambda: process.poll() is not None or _is_ready(client))
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            yield client
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def asked(client: httpx.Client, expression: str) -> list[Any]:
    answer = client.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    return answer["data"]["result"]


def test_gateway_worker_and_sidecar_are_scraped(prometheus: httpx.Client):
    wait_until(lambda: len(asked(prometheus, "up == 1")) == 3)
    assert asked(prometheus, 'onesearch_build_info{job="gateway"}')
    assert asked(prometheus, 'onesearch_keyword_in_hand{job="worker"}')
    assert asked(prometheus, 'onesearch_sidecar_lease_held{job="sidecar"}')


def test_searches_are_seen_by_the_dashboards_and_no_page_is_sent(
    prometheus: httpx.Client, graph: Any
):
    rate = 'sum(rate(onesearch_request_seconds_count{route="/v1/search", status="200"}[1m])) > 0'

    def seen() -> bool:
        body = {"query": "steel shelf"}
        assert httpx.post(f"{graph.gateway.url}/v1/search", json=body, timeout=60).is_success
        return bool(asked(prometheus, rate))

    wait_until(seen)
    assert asked(prometheus, "sum by (stage) (rate(onesearch_stage_seconds_sum[1m])) > 0")
    rules = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    states = {rule["name"]: rule for group in rules for rule in group["rules"]}
    assert len(states) == sum(len(group["rules"]) for group in rules) > 15
    assert {rule["health"] for rule in states.values()} <= {"ok", "unknown"}
    firing = [one for one in states.values() if one["state"] == "firing"]
    assert [one["name"] for one in firing if one["labels"]["severity"] == "page"] == []
