"""Runs the processes that merge a catalogue's changes into a snapshot (`index.live.merge`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from index.errors import ArtifactError
from index.live.directory import remove_drafts


class Merger:
    """One process at a time. `stop` is for another thread."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self, base: Path, log: Path, through: int, path: Path) -> None:
        """Write the snapshot at `base`, with a log's changes up to `through`, to `path`.

        Raises ArtifactError when that failed or was stopped; nothing is left of it then.
        """
        command = [*python_module("index.live.merge"), base, log, str(through), path]
        child = self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=own_environment(),
        )
        if self._stopping:
            child.kill()
        try:
            # Its standard input stays open as long as we live: that is how it knows.
            assert child.stderr is not None
            told = child.stderr.read()
            status = child.wait()
            if status:
                remove_drafts(path)
                if self._stopping:
                    raise ArtifactError("the catalogue was closed")
                killed = f"its process was ended by signal {-status}"
                lines = told.decode(errors="replace").strip().splitlines()
                reason = lines[-1] if lines else killed if status < 0 else "no reason given"
                raise ArtifactError(f"the catalogue could not be merged: {reason}")
        finally:
            self._child = None
            for pipe in (child.stdin, child.stderr):
                if pipe is not None:
                    pipe.close()

    def stop(self) -> None:
        """End the process, and every later one at once."""
        self._stopping = True
        child = self._child
        if child is not None:
            # Not `terminate`: where we ignore that signal, it does, too.
            child.kill()


def python_module(name: str) -> list[str]:
    """The command that runs a module of ours, whatever files lie in the current directory."""
    return [sys.executable, "-P", "-m", name]


def own_environment() -> dict[str, str]:
    """For processes of ours: our modules, one thread."""
    paths = [path for path in sys.path if path]
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | threads
