"""One change of a registry at a time, whichever process makes it.

The lock is the kernel's, on an open file, so it ends with its process however that ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from index.errors import ArtifactError

LOCK_WAIT_S = 30.0
_POLL_S = 0.005


@contextmanager
def locked(path: Path, wait_s: float = LOCK_WAIT_S) -> Generator[None, None, None]:
    """Hold the lock file for a block. Not to be nested.

    Raises ArtifactError when others hold it for longer than `wait_s`, or it cannot be written.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}") from None
    try:
        _acquire(file, path, wait_s)
        yield
    finally:
        os.close(file)


def _acquire(file: int, path: Path, wait_s: float) -> None:
    give_up = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up:
                owner = os.pread(file, 20, 0).decode(errors="replace").strip() or "unknown"
                raise ArtifactError(
                    f"{path} is held by another process (number {owner}) for more than "
                    f"{wait_s:g} s; try again when it is done"
                ) from None
            time.sleep(_POLL_S)
        else:
            # A full disk must not keep a rollback from happening over this courtesy.
            try:
                os.pwrite(file, f"{os.getpid():<20}".encode(), 0)
            except OSError:
                return
            return
