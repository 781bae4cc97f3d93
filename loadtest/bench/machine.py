"""The machine that a benchmark ran on, and whether it was busy with something else."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

BUSY_SHARE = 0.15
LOOK_S = 0.5
PACKAGES = ("numpy", "numba", "torch", "transformers", "flashrec")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
_ROOT = Path(__file__).resolve().parents[2]


def describe_machine() -> dict[str, Any]:
    """Processor, memory, versions, commit, threads and load. Looks at the load for half a second,
    so call it before the work starts."""
    busy_share = psutil.cpu_percent(interval=LOOK_S) / 100
    return {
        "cpu": _processor(),
        "instructions": _instructions(),
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "threads": {name: value for name, value in sorted(os.environ.items()) if "_THREADS" in name}
        | {"torch": _torch_threads()},
        "load_before": {"busy_share": round(busy_share, 3), "average_1_min": os.getloadavg()[0]},
        "busy": busy_share > BUSY_SHARE,
    }


def one_line(machine: dict[str, Any]) -> str:
    """The same for a table's caption."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; {versions}; "
        f"commit {machine['commit']}"
    )


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def others_times() -> dict[int, float]:
    """Processor seconds so far of each process that is neither this one nor one below it."""
    own = psutil.Process()
    ours = {own.pid, *(child.pid for child in own.children(recursive=True))}
    times: dict[int, float] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid not in ours:
                used = process.cpu_times()
                times[process.pid] = used.user + used.system
    return times


def others_share(before: dict[int, float], seconds: float) -> float:
    """Share of the machine's processors that others had in the `seconds` since `before`, as
    `others_times` gives it. Those that have ended since are not counted."""
    used = sum(now - before.get(number, 0.0) for number, now in others_times().items())
    return used / (seconds * usable_cores())


def _processor() -> str:
    return _cpu_fact("model name") or platform.processor() or platform.machine()


def _instructions() -> list[str]:
    flags = set((_cpu_fact("flags") or _cpu_fact("Features")).split())
    return [name for name in _INSTRUCTIONS if name in flags]


def _cpu_fact(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = (line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key)
    return next(found, "")


def _versions() -> dict[str, str]:
    known: dict[str, str] = {}
    for name in PACKAGES:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _commit() -> str:
    """Short hash of the working tree's commit, with a + when files differ from it."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ("git", "-C", str(_ROOT), *arguments),
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    ).stdout.strip()
