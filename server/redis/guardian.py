"""Ends an embedded server whose users are all gone, be it that they were killed.

A script of its own process, which needs nothing but the standard library:

    python guardian.py USERS SOCKET

Users hold a shared lock on the file USERS. Whoever gets the exclusive lock knows that there are
none. This process asks for it every `LOOK_S`; as soon as it has it, it shuts the server at SOCKET
down and ends. There is one guardian for a directory: it inherits the lock that says so.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time

LOOK_S = 1.0
STOP_S = 10.0
PROBE_S = 1.0


def main(users: str, path: str) -> None:
    """Wait until there are no users, then end the server."""
    file = os.open(users, os.O_RDWR)
    line: socket.socket | None = None
    while True:
        line = _kept(line, path)
        time.sleep(LOOK_S)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        break
    # Who comes now waits for the lock, and then finds no server that is about to end.
    until = time.monotonic() + STOP_S
    while (line := _kept(line, path)) is not None and time.monotonic() < until:
        _tell(line)
        time.sleep(0.05)


def _kept(line: socket.socket | None, path: str) -> socket.socket | None:
    """A line to the server, if there is one: that which is there, else a new one. It is kept,
    because the last user may take the directory away, and nobody would find the server again."""
    if line is not None:
        try:
            line.setblocking(False)
            while line.recv(100):
                pass
        except BlockingIOError:
            line.settimeout(PROBE_S)
            return line
        except OSError:
            pass
        line.close()
    line = socket.socket(socket.AF_UNIX)
    try:
        line.settimeout(PROBE_S)
        line.connect(path)
    except OSError:
        line.close()
        return None
    return line


def _tell(line: socket.socket) -> None:
    """Tell the server to end. One that cannot hear it is told again."""
    try:
        line.sendall(b"SHUTDOWN\r\n")
        line.recv(100)
    except OSError:
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
