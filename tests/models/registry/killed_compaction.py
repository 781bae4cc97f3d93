"""Not a test: compacts copies of a registry and is killed, at steps spread over the whole.

    killed_compaction.py TEMPLATE FOLDER

TEMPLATE is copied into FOLDER for each step; a child process makes two changes, tells that they
were acknowledged, and compacts until its step, an opening for writing, a naming, linking or
removing. Prints one JSON line per copy; the first child is let through and counts the steps.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from index.live.catalogue import LiveCatalogue, LiveSettings, live_directory
from index.live.changes import Delete
from models.registry.compaction import compact
from models.registry.pairing import check_pair
from models.registry.registry import Provenance, Registry

STEPS = {"os.mkdir", "os.rename", "os.link", "os.remove", "subprocess.Popen"}
WRITES = os.O_WRONLY | os.O_RDWR
KILLED_COPIES = 5


def main(template: str, folder: str) -> None:
    # What a first opening imports takes a second: here, so that no child spends it.
    registry = Registry(Path(template))
    check_pair(*registry.paths(registry.records()[0][0]))
    total = attempt(template, folder, 0)
    for number in range(KILLED_COPIES):
        attempt(template, folder, 1 + number * (total - 1) // (KILLED_COPIES - 1))


def attempt(template: str, folder: str, step: int) -> int:
    """Tells how it ended; the number of steps of one that got through."""
    copy = Path(folder) / f"step-{step}"
    shutil.copytree(template, copy)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        act(copy, step, writing)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        lines = told.read().split()
    _, status = os.waitpid(child, 0)
    report = {
        "step": step,
        "copy": str(copy),
        "acknowledged": "acknowledged" in lines,
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "steps": int(lines[-1]) if lines and lines[-1].isdigit() else 0,
    }
    print(json.dumps(report), flush=True)
    return int(report["steps"])


def act(copy: Path, step: int, told: int) -> None:
    registry = Registry(copy)
    champion = registry.aliases().champion
    assert champion is not None
    record = registry.record(champion)
    live = live_directory(registry.snapshots.path(record.catalogue_origin))
    settings = LiveSettings(merge_automatically=False, publish_interval_s=0.0)
    with LiveCatalogue.open(registry.paths(record)[0], live, settings) as catalogue:
        catalogue.apply([Delete("i0"), Delete("i1")])
        os.write(told, b"acknowledged\n")
        seen = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            opened = event == "open" and bool(int(arguments[2] or 0) & WRITES)
            if event in STEPS or opened:
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        compact(registry, record, catalogue, Provenance("ann"))
        os.write(told, f"{seen}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
