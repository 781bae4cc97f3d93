"""The card: what it is, and the two ceilings that floors are computed from."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch

PACKAGES = ("torch", "triton", "transformers", "numpy", "numba")
GEMM_SIZE = 8192
COPY_BYTES = 4 << 30


class Ceilings(NamedTuple):
    """Floating-point operations and bytes, read plus written, per second."""

    operations: float
    bandwidth: float


def describe_card() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "card": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def short_name(card: str) -> str:
    """ "NVIDIA H100 80GB HBM3" → "h100"."""
    found = re.search(r"\b[A-Z]{1,2}\d{1,4}\w*|\bRTX \w+", card)
    return (found.group() if found else card).lower().replace(" ", "_")


def measure_ceilings() -> Ceilings:
    """A large bf16 product of random numbers, and a large copy; medians of events."""
    left, right = (
        torch.randn(GEMM_SIZE, GEMM_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    product_s = median_s(lambda: torch.mm(left, right), 20)
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy_s = median_s(lambda: target.copy_(source), 20)
    return Ceilings(2 * GEMM_SIZE**3 / product_s, 2 * COPY_BYTES / copy_s)


def median_s(work: Any, rounds: int) -> float:
    """Device seconds of `work()`, by events; three rounds of warm-up."""
    for _ in range(3):
        work()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for begin, end in events:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    spans = sorted(begin.elapsed_time(end) for begin, end in events)
    return spans[len(spans) // 2] / 1000


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
