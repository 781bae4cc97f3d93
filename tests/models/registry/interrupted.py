"""Not a test: does something to copies of a registry, cut off at every step in turn.

    interrupted.py ACTION kill|full TEMPLATE FOLDER [ARGUMENT…]

For step 1, 2, …: TEMPLATE is copied into FOLDER and a child process acts on the copy. A step is an
opening for writing, a naming, linking, removing or syncing there. `kill`: at its step the child is
killed. `full`: from its step on, nothing more can be written. Prints one JSON line per step; ends
with the first child that got through.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from index.errors import ArtifactError, OnesearchError
from models.registry.pairing import check_pair
from models.registry.promotion import promote, rollback
from models.registry.publication import publish
from models.registry.registry import Registry
from models.registry.retention import Retention, collect

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STEPS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "fsync"}
NEEDS_SPACE = {"open", "os.mkdir", "os.link", "fsync"}
MAX_STEPS = 2_000
COPIED_STRIDE = 7


def main(action: str, how: str, template: str, folder: str, *arguments: str) -> None:
    # What a first opening imports takes a second: here, so that no child spends it.
    check_pair(Path(template) / "snapshot", Path(template) / "checkpoint")
    for step in range(1, MAX_STEPS):
        copy = Path(folder) / f"{action}-{how}-{step}"
        shutil.copytree(template, copy)
        child = os.fork()
        if child == 0:
            os._exit(act(action, how, copy, step, arguments))
        _, status = os.waitpid(child, 0)
        told = copy / "told"
        report = {
            "step": step,
            "copy": str(copy),
            "killed": os.WIFSIGNALED(status),
            "error": told.read_text() if told.exists() else "",
        }
        print(json.dumps(report), flush=True)
        if status == 0:
            return
    sys.exit("never got through")


def act(action: str, how: str, copy: Path, step: int, arguments: tuple[str, ...]) -> int:
    registry = Registry(copy / "registry")
    given = [copy / argument if (copy / argument).exists() else argument for argument in arguments]
    actions: dict[str, Callable[[], Any]] = {
        "publish": lambda: publish(registry, *given),
        "move": lambda: publish(registry, *given, move=True),
        "promote": lambda: promote(registry, arguments[0]),
        "rollback": lambda: rollback(registry),
        "collect": lambda: collect(registry, Retention(generations=0, min_age_s=0)),
    }
    interrupt(how, str(copy), step)
    try:
        actions[action]()
    except ArtifactError as error:
        RUNS.clear()
        (copy / "told").write_text(str(error))
        return 2
    except OnesearchError:
        return 3
    return 0


RUNS: list[str] = []


def interrupt(how: str, under: str, at: int) -> None:
    """From here on count steps below a folder, and cut off."""
    seen = copied = 0
    RUNS.append(how)

    def count(event: str, path: Any, writes: bool) -> None:
        nonlocal seen, copied
        if not RUNS or event not in STEPS or not str(path).startswith(under):
            return
        if not writes:
            return
        # The files of a part are alike: one step in some of them is enough.
        of_part = "/work/" in str(path) or not str(path).startswith(f"{under}/registry")
        if event != "os.rename" and of_part:
            copied += 1
            if copied % COPIED_STRIDE:
                return
        seen += 1
        if how == "kill" and seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "full" and seen >= at and event in NEEDS_SPACE and writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event == "open":
            count(event, values[0], bool(values[2] & WRITES))
        elif event in STEPS:
            count(event, values[1 if event == "os.link" else 0], True)

    sync = os.fsync

    def counted(file: int) -> None:
        count("fsync", Path(f"/proc/self/fd/{file}").readlink(), True)
        sync(file)

    os.fsync = counted
    sys.addaudithook(hook)


if __name__ == "__main__":
    main(*sys.argv[1:])
