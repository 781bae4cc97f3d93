"""Changes of directories that a power cut leaves either done or not done, and never between.

A file: temporary name, sync, rename, sync of its folder. A directory is written in `work/` and
renamed into its place, and renamed back there before it is removed. What a killed process left in
`work/` is removed by a later one.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from pathlib import Path

from index import artifact
from models.registry.process import Process

FOREIGN_WORK_S = 24 * 3600.0
"""Work of another machine, which cannot be asked whether it still runs, is left alone this long."""


def sync(path: Path) -> None:
    """Wait until a file's contents, or a directory's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write one file atomically; its folder is synced too."""
    artifact.write_file(path, data)
    sync(path.parent)


def move_durably(source: Path, target: Path) -> None:
    """Rename within the file system; both folders are synced."""
    source.rename(target)
    sync(target.parent)
    sync(source.parent)


def work_path(work: Path, name: str) -> Path:
    """A path in `work` of this process's own."""
    work.mkdir(parents=True, exist_ok=True)
    own = Process.own()
    return work / f"{name}.{own.machine}.{own.number}.{secrets.token_hex(4)}"


def remove_durably(path: Path, work: Path) -> None:
    """Remove a directory: its name goes in one step, its files after that."""
    aside = work_path(work, path.name)
    move_durably(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def clear_work(work: Path) -> list[str]:
    """Remove what processes left that run no more; the names removed."""
    removed: list[str] = []
    for path in sorted(work.glob("*")):
        _, machine, number, _ = ("", *path.name.rsplit(".", 3))[-4:]
        owner = Process(machine, int(number) if number.isdigit() else 0)
        if owner.runs_here() is False or (
            owner.runs_here() is None and _age_s(path) > FOREIGN_WORK_S
        ):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
