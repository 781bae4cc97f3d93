"""Who holds something: a process of a machine, recognised even when its number is used again."""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

_PID_NAMESPACE = Path("/proc/self/ns/pid")
_START_SLACK_S = 2.0


@dataclass(frozen=True, slots=True)
class Process:
    """`machine`: digest of host name and process namespace (a container has its own). `started`:
    Unix time of the process's start, 0 where it is not known."""

    machine: str
    number: int
    started: float = 0.0

    @classmethod
    def own(cls) -> Process:
        return cls(this_machine(), os.getpid(), psutil.Process().create_time())

    def runs_here(self) -> bool | None:
        """Whether it still runs; None for a process of another machine."""
        if self.machine != this_machine():
            return None
        try:
            started = psutil.Process(self.number).create_time()
        except (psutil.NoSuchProcess, ValueError):
            return False
        except psutil.AccessDenied:
            return True
        return not self.started or abs(started - self.started) < _START_SLACK_S


@cache
def this_machine() -> str:
    """Eight hex digits."""
    try:
        namespace = str(_PID_NAMESPACE.stat().st_ino)
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()}:{namespace}".encode()).hexdigest()[:8]


def whoami() -> str:
    """`user@host`, for histories."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
