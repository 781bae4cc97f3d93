"""One run: a server of its own or one that is named, the process that sends the load, and a look at
both every second.

A server of its own serves a registry that is made from a demo's snapshot and checkpoint, in a
folder that goes with the run, so that a load test leaves the demo as it was. Its second generation
has the same snapshot and slightly disturbed weights: something to swap to.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil

from index.errors import ConfigError, OnesearchError
from loadtest.bench.overload import running
from loadtest.bench.swap_stock import make_stock
from loadtest.plan import Plan
from loadtest.results import PLAN, RECORDS, SAMPLES

EVERY_S = 1.0
MEMORY_EVERY = 5
"""Memory is looked at in every so many looks: what is shared has to be counted page by page."""
PROBE_S = 5.0
_REDIS = ("redis", "valkey")
"""In the names of processes."""
Told = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Target:
    """A server that answers. `process`: its number, None where it runs elsewhere. `versions`: the
    generations that it can be swapped to."""

    url: str
    process: int | None = None
    versions: tuple[str, ...] = ()


@contextmanager
def own_server(demo: Path) -> Generator[Target, None, None]:
    """`onesearch serve` on the demo's pair, on a free port of 127.0.0.1. Raises ConfigError where
    the demo is not built, OnesearchError where the server does not start."""
    for part in ("dataset", "snapshot", "checkpoint"):
        if not (demo / part / "manifest.json").is_file():
            raise ConfigError(
                f"{demo} has no {part}: run `onesearch demo --directory {demo} --no-serve` first"
            )
    with tempfile.TemporaryDirectory(prefix="onesearch-load-") as name:
        folder = Path(name)
        stock = make_stock(folder, demo / "snapshot", demo / "checkpoint", other=False)
        settings = {
            "ONESEARCH_REGISTRY": str(stock.path),
            "ONESEARCH_REDIS_DIRECTORY": str(folder / "redis"),
            "ONESEARCH_EVENTS": "true",
        }
        with running([], folder, settings) as (port, process):
            yield Target(f"http://127.0.0.1:{port}", process, tuple(stock.versions))


def named_server(url: str) -> Target:
    """A server that runs already. Raises ConfigError when it does not answer."""
    try:
        answer = httpx.get(f"{url.rstrip('/')}/readyz", timeout=PROBE_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"--url {url}: {str(error) or type(error).__name__}") from None
    if answer.status_code != 200:
        raise ConfigError(f"--url {url}: /readyz says {answer.status_code}: {answer.text[:200]}")
    return Target(url.rstrip("/"))


def run_plan(plan: Plan, target: Target, out: Path, told: Told) -> None:
    """Send the load; records and samples go into `out`, `told` gets what the sender tells.

    Raises OnesearchError when the process that sends fails, with its last line.
    """
    out.mkdir(parents=True, exist_ok=True)
    plan = replace(plan, url=target.url, versions=target.versions)
    plan.write(out / PLAN)
    with (
        (out / "sender.log").open("w+b") as errors,
        ExitStack() as stack,
        subprocess.Popen(
            [sys.executable, "-m", "loadtest.shoppers", str(out / PLAN), str(out / RECORDS)],
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as sender,
    ):
        stack.callback(sender.kill)
        stack.enter_context(_watched(target.process, sender.pid, out / SAMPLES))
        assert sender.stdout is not None
        for line in sender.stdout:
            if line.startswith(b"{"):
                told(orjson.loads(line))
        status = sender.wait()
        if status:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            raise OnesearchError(f"the load could not be sent: {lines[-1] if lines else status}")


@contextmanager
def _watched(server: int | None, load: int, file: Path) -> Generator[None, None, None]:
    """Sample both processes into `file` from a process of its own, so that no thread of this one
    competes with the reading."""
    command = [sys.executable, "-m", "loadtest.trial", str(server or 0), str(load), str(file)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as watcher:
        try:
            yield
        finally:
            watcher.terminate()


def watch(server: int, load: int, file: Path) -> None:
    """One sample a second until `load` ends. `server` 0: it is not here."""
    number = 0
    with file.open("w", encoding="utf-8") as stream:
        while psutil.pid_exists(load):
            sample: dict[str, float] = {"at": time.monotonic()}
            try:
                sample["load"] = _processor_s(psutil.Process(load))
                if server:
                    sample["server"] = _processor_s(psutil.Process(server))
                    if number % MEMORY_EVERY == 0:
                        sample |= _memory_mb(psutil.Process(server))
            except psutil.Error:
                # One of them has just ended.
                pass
            stream.write(orjson.dumps(sample).decode() + "\n")
            stream.flush()
            number += 1
            time.sleep(EVERY_S)


def _processor_s(process: psutil.Process) -> float:
    """Of a process and its descendants, those that have ended and were waited for included."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            total += sum(one.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return round(total, 3)


def _memory_mb(process: psutil.Process) -> dict[str, float]:
    """Proportional set size of a process and its descendants, so what they share counts once; and
    how much of it is Redis, which grows by what it is given to keep."""
    total = redis = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            used, name = one.memory_full_info().pss / 1e6, one.name()
        except psutil.NoSuchProcess:
            continue
        total += used
        redis += used * any(known in name for known in _REDIS)
    return {"memory_mb": round(total, 2), "redis_mb": round(redis, 2)}


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
