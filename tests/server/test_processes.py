"""Memory and processor time of processes, as Prometheus sees them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample

from models.training.loop import Progress
from server.keywords.metrics import WorkerMetrics
from server.metrics import PassedOn
from server.processes import ProcessCollector
from server.sidecar.metrics import SidecarMetrics

MEMORY = "onesearch_process_resident_memory_bytes"


def samples(registry: Any) -> dict[tuple[str, str], float]:
    """(name, process) → value."""
    found: list[Sample] = [one for family in registry.collect() for one in family.samples]
    return {(one.name, one.labels["process"]): one.value for one in found if one.labels}


def test_a_process_and_those_that_it_started():
    registry = CollectorRegistry()
    program = [sys.executable, "-c", "print(flush=True); input()"]
    child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert child.stdout.readline(), "it has started"
        registry.register(ProcessCollector("gateway", lambda: {"writer": [child.pid]}))
        seen = samples(registry)
        for name in ("gateway", "writer"):
            assert seen[MEMORY, name] > 1 << 20
            assert seen["onesearch_process_cpu_seconds_total", name] >= 0
            assert seen["onesearch_process_open_files", name] > 0
            assert seen["onesearch_processes", name] == 1
    finally:
        child.communicate(b"\n")
    seen = samples(registry)
    assert [seen["onesearch_processes", "writer"], seen[MEMORY, "writer"]] == [0, 0]


def test_worker_and_sidecar_tell_of_themselves():
    for name, registry in (
        ("worker", WorkerMetrics("null").registry),
        ("sidecar", SidecarMetrics().registry),
    ):
        found = [one for family in registry.collect() for one in family.samples]
        [memory] = [one for one in found if one.name == MEMORY]
        assert memory.labels == {"process": name} and memory.value > 1 << 20


def test_loss_and_reward_of_the_training_that_runs():
    metrics = SidecarMetrics()
    metrics.training("sft", Progress(1, 4, 2.5, 10.0, 3.0, 0, 1e-3, {}))
    value = metrics.registry.get_sample_value
    assert value("onesearch_sidecar_training_loss", {"stage": "sft"}) == 2.5
    assert value("onesearch_sidecar_training_reward", {"stage": "sft"}) is None
    metrics.training("align", Progress(1, 4, 0.5, 10.0, 3.0, 0, 1e-3, {"reward": 0.75}))
    assert value("onesearch_sidecar_training_reward", {"stage": "align"}) == 0.75


def test_what_a_library_counts_is_passed_on_by_name():
    registry = CollectorRegistry()
    registry.register(PassedOn("python_gc_"))
    names = {family.name for family in registry.collect()}
    assert names and all(name.startswith("python_gc_") for name in names)


def test_the_gateway_and_the_writer_of_its_catalogue(changing: Any):
    client = changing(catalogue_changes=True)
    lines = client.get("/metrics").text.splitlines()
    assert 'onesearch_processes{process="gateway"} 1.0' in lines
    assert 'onesearch_processes{process="writer"} 1.0' in lines
    assert 'onesearch_processes{process="engine"} 0.0' in lines
