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
    while True:
        time.sleep(LOOK_S)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        break
    # Who comes now waits for the lock, and then finds no server that is about to end.
    until = time.monotonic() + STOP_S
    while _told(path) and time.monotonic() < until:
        time.sleep(0.05)


def _told(path: str) -> bool:
    """Tell the server to end; whether there was one to tell."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PROBE_S)
            client.connect(path)
            client.sendall(b"SHUTDOWN\r\n")
            client.recv(100)
            return True
    except TimeoutError:
        return True
    except OSError:
        return False


if __name__ == "__main__":
    main(*sys.argv[1:])
