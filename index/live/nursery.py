"""Where writers of catalogues come from: a process that has imported everything and forks them.

    python -m index.live.nursery DESCRIPTOR [MODULE …]

A writer that starts as a program spends most of a processor's second on imports, and a server that
opens a generation beside the live one has none to spare. Forked from here it begins with its order.
The process has one thread, so a fork copies no lock that somebody holds, and does nothing but fork.
It asks for processors after searches do, and so do the writers that it leaves behind.

It ends when the process that started it does, however that ended; writers end by themselves, since
each sees its own channel close. MODULEs register kinds of encoders.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import psutil

from index.encoder import kind_modules
from index.errors import ArtifactError
from index.live.merger import own_environment, python_module
from index.live.writer import Order, write

PRIORITY = 5
"""Niceness: where processors are short, searches come before changes, which still get a share."""
BIRTH_S = 60.0
"""The first birth waits for the imports."""
END_S = 10.0
ONE_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Beside what limits calculations: Arrow's allocator would have a thread."""
_PID_BYTES = 8


class Writer:
    """A writer's process, which is no child of this one."""

    def __init__(self, number: int) -> None:
        self.pid = number
        try:
            self._process = psutil.Process(number)
        except psutil.NoSuchProcess:
            self._process = None

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):
                self._process.kill()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within that time."""
        try:
            if self._process is not None:
                self._process.wait(timeout_s)
        except psutil.TimeoutExpired:
            return False
        return True


class Nursery:
    """The process, from the side of those that want writers. For any thread; it is there while
    somebody shares it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._sharing = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._asking: socket.socket | None = None

    def share(self) -> Nursery:
        """One more uses it, until `leave`."""
        with self._turn:
            self._sharing += 1
        return self

    def leave(self) -> None:
        """One less; with the last one the process ends."""
        with self._turn:
            self._sharing -= 1
            if not self._sharing:
                self._end()

    def bear(self, end: socket.socket, order: Order) -> Writer:
        """A writer with one end of a channel. Raises ArtifactError where none can be had."""
        with self._turn:
            try:
                try:
                    number = self._asked(end, order)
                except (BrokenPipeError, ConnectionResetError):
                    # It had ended without having read the order: there is no writer.
                    self._end()
                    number = self._asked(end, order)
            except OSError as error:
                # Whether there is a writer or not: it ends when its channel does.
                self._end()
                raise ArtifactError(f"no process can write {order.directory}: {error}") from None
        return Writer(number)

    def _asked(self, end: socket.socket, order: Order) -> int:
        """The number of a process that was born for this. Raises OSError."""
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._start()
        asking = self._asking
        assert asking is not None
        body = order.to_json()
        socket.send_fds(asking, [len(body).to_bytes(_PID_BYTES)], [end.fileno()])
        asking.sendall(body)
        return int.from_bytes(_received(asking, _PID_BYTES))

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(BIRTH_S)
        with theirs:
            self._process = subprocess.Popen(
                [*python_module(__name__), str(theirs.fileno()), *kind_modules()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=own_environment() | ONE_THREAD,
                pass_fds=(theirs.fileno(),),
                # Ctrl-C in a terminal is for this process alone.
                start_new_session=True,
            )
        self._asking = ours

    def _end(self) -> None:
        process, self._process = self._process, None
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.close()
        if process is not None:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main(arguments: Sequence[str]) -> None:
    """Fork a writer for every order, until nobody can send one any more."""
    descriptor, *modules = arguments
    # Signals to the whole group are for the process that searches; we end when it does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Nobody waits for writers here.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.nice(PRIORITY)
    with suppress(OSError):
        # Where Linux groups processes by session, niceness counts within a group only.
        Path("/proc/self/autogroup").write_text(str(PRIORITY))
    if hasattr(os, "SCHED_BATCH"):
        # Whoever wakes one of them up goes on; it waits for a processor to be free.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    for module in modules:
        import_module(module)
    asking = socket.socket(fileno=int(descriptor))
    # Writers share what was imported, and their collections leave it alone.
    gc.collect()
    gc.freeze()
    # It may end in the middle of an order.
    with suppress(ConnectionError):
        _fork(asking)


def _fork(asking: socket.socket) -> None:
    while True:
        head, ends, _, _ = socket.recv_fds(asking, _PID_BYTES, 1)
        if not head:
            return
        [end] = ends
        order = Order.from_json(_received(asking, int.from_bytes(head)))
        number = os.fork()
        if not number:
            asking.close()
            _write(socket.socket(fileno=end), order)
        os.close(end)
        asking.sendall(number.to_bytes(_PID_BYTES))


def _write(end: socket.socket, order: Order) -> NoReturn:
    """What is forked, to its end."""
    status = 1
    try:
        # It waits for processes of its own.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        write(end, order)
        status = 0
    except BaseException:  # noqa: BLE001  it must not go on as the one that it was forked from
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _received(end: socket.socket, length: int) -> bytes:
    """So many bytes. Raises ConnectionError where the other side is gone."""
    found = b""
    while len(found) < length:
        part = end.recv(length - len(found))
        if not part:
            raise ConnectionError("the process that starts writers has ended")
        found += part
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
