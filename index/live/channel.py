"""Messages over a socket between two processes of one catalogue.

    length u32 | kind u8 | 3 bytes of nothing | body

`send` never waits: what the socket does not take is sent by a thread as soon as it does.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from enum import IntEnum

_HEAD = struct.Struct("<IBxxx")
_READ_BYTES = 1 << 18
_TIME = struct.Struct("@ll")
"""A `timeval`: seconds, microseconds."""


class Kind(IntEnum):
    """What a message is; JSON where nothing else is said."""

    CALL = 1
    """To the writer: tag u32, then changes (`index.live.wire`)."""
    MERGE = 2
    """To the writer: tag."""
    EXPORT = 3
    """To the writer: tag and path."""
    READY = 4
    """To the writer: searches may get the new line; or the reason why not."""
    DELTA = 11
    """The next delta (`index.live.delta`) of the views that searches get."""
    ANSWERS = 12
    """Answers to calls, each tag, sequence, applied, rejected ones; and counters."""
    FAILED = 13
    """Tag and reason: the changes of a call were not made."""
    BEGUN = 14
    """Path of the snapshot that a new line of views begins at."""
    REPLAYED = 15
    """The next delta of the new line."""
    PREPARE = 16
    """Asks for READY."""
    MOVED = 17
    """Searches get the new line from here on."""
    DONE = 18
    """Tag of a merge or an export that ended, and the error, null for none."""
    COUNTERS = 19
    """Counters have changed."""
    NOTE = 20
    """A log record: level and text."""
    REFUSED = 21
    """The catalogue could not be opened: name of the error and its text."""
    OPENED = 22
    """It was: calls are taken. A note for a person on what was mended."""
    ALIVE = 23
    """The writer is there, whatever it does."""


class Channel:
    """One end. `send` is for any thread, `messages` for one."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._left: deque[bytes | memoryview] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._sender: threading.Thread | None = None

    def send(self, *messages: tuple[Kind, bytes]) -> None:
        """Send messages, one behind the other. To an end that is gone they are dropped."""
        data = b"".join(
            part for kind, body in messages for part in (_HEAD.pack(len(body), kind), body)
        )
        with self._changed:
            if self._closed:
                return
            if not self._left:
                try:
                    sent = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    return
                if sent == len(data):
                    return
                data = memoryview(data)[sent:]
            self._left.append(data)
            if self._sender is None:
                self._sender = threading.Thread(
                    target=self._send_rest, name="catalogue-sender", daemon=True
                )
                self._sender.start()
            self._changed.notify_all()

    def messages(
        self, idle: Callable[[], None] | None = None, every_s: float = 1.0
    ) -> Generator[tuple[Kind, bytearray], None, None]:
        """Messages of the other end, until it is gone. `idle` is called about `every_s` while none
        comes."""
        if idle is not None:
            # In the socket, not by `poll`: each call that waits costs a turn at the interpreter.
            limit = _TIME.pack(int(every_s), int(every_s % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        buffer, known = bytearray(_READ_BYTES), bytearray()
        view = memoryview(buffer)
        while True:
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                if idle is not None:
                    idle()
                continue
            except OSError:
                return
            if not count:
                return
            known += view[:count]
            at = 0
            while len(known) - at >= _HEAD.size:
                length, kind = _HEAD.unpack_from(known, at)
                end = at + _HEAD.size + length
                if end > len(known):
                    break
                yield Kind(kind), known[at + _HEAD.size : end]
                at = end
            del known[:at]

    def flush(self, timeout_s: float) -> None:
        """Wait until the socket has taken all, or for so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._left or self._closed, timeout_s)

    def finish(self) -> None:
        """Say that nothing more is sent; the other end's messages still come."""
        with self._changed, suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Neither send nor read any more."""
        with self._changed:
            self._closed = True
            self._left.clear()
            self._changed.notify_all()
        # The other end may have been the first to go.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._sender is not None:
            self._sender.join()
        self._socket.close()

    def _send_rest(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._left or self._closed)
                if self._closed:
                    return
                data = self._left[0]
            try:
                self._socket.sendall(data)
            except OSError:
                with self._changed:
                    self._left.clear()
                    self._closed = True
            with self._changed:
                if self._left:
                    self._left.popleft()
                self._changed.notify_all()
