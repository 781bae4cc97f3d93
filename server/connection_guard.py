"""Connections that cost more than they bring are closed: those that are slow, and too many.

waiting    new, or a head or what is left of a body that was refused is still on its way. Closed
           after `head_timeout_s`, however often a byte arrives meanwhile
idle       between two requests. uvicorn's own timer closes them
blocked    the client does not read its answer. Closed after `head_timeout_s`, too
crowded    more than `most` connections: the one that has been waiting longest goes, if none is,
           one that is idle, else the new one. So whoever holds connections without sending requests
           holds none against those who do

Time is looked at once a second, for all connections together: a request pays for two entries of a
dict, not for timers. When that look itself comes late, this process was held up, not its clients:
what they sent may lie there unread, and the time is not theirs.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from itertools import chain
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from server.security_metrics import CutReason, SecurityMetrics

SWEEP_S = 1.0
OTHER_FILES = 512
"""What a server has open beside connections, at most."""


class Guarded(Protocol):
    """What is watched: uvicorn's protocol of one connection."""

    @property
    def transport(self) -> asyncio.Transport: ...


class ConnectionGuard:
    """One server's. Used on one event loop."""

    def __init__(
        self,
        most: int,
        head_timeout_s: float,
        metrics: SecurityMetrics | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self._most = most
        self._timeout_s = head_timeout_s
        self._metrics = metrics
        self._log = log
        # Since when, by the loop's clock; oldest first, as entries are never renewed.
        self._waiting: dict[Guarded, float] = {}
        self._idle: dict[Guarded, None] = {}
        self._blocked: dict[Guarded, float] = {}
        self._cut: Counter[CutReason] = Counter()
        self._sweep: asyncio.TimerHandle | None = None
        self._due = 0.0

    def opened(self, connection: Guarded, count: int) -> None:
        """A connection is there; with it there are `count`."""
        if count > self._most:
            self._close(next(chain(self._waiting, self._idle, (connection,))), "crowded")
        self.waits(connection)

    def waits(self, connection: Guarded) -> None:
        """A request of this connection has begun to arrive, or should; it may be known already."""
        self._idle.pop(connection, None)
        if connection not in self._waiting:
            loop = asyncio.get_running_loop()
            self._waiting[connection] = loop.time()
            self._look_soon(loop)

    def serves(self, connection: Guarded) -> None:
        """A request of this connection is being answered."""
        self._waiting.pop(connection, None)
        self._idle.pop(connection, None)

    def rests(self, connection: Guarded) -> None:
        """Its request was answered."""
        self._idle[connection] = None

    def blocks(self, connection: Guarded) -> None:
        """The client does not read what was written."""
        loop = asyncio.get_running_loop()
        self._blocked.setdefault(connection, loop.time())
        self._look_soon(loop)

    def flows(self, connection: Guarded) -> None:
        """It reads again."""
        self._blocked.pop(connection, None)

    def closed(self, connection: Guarded) -> None:
        """It is no more."""
        self.serves(connection)
        self._blocked.pop(connection, None)

    @property
    def _interval_s(self) -> float:
        return min(SWEEP_S, self._timeout_s / 4)

    def _look_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._sweep is None:
            self._due = loop.time() + self._interval_s
            self._sweep = loop.call_at(self._due, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now, self._sweep = loop.time(), None
        held_up_s = now - self._due
        if held_up_s > self._interval_s:
            for connections in (self._waiting, self._blocked):
                for connection in connections:
                    connections[connection] += held_up_s
        oldest = now - self._timeout_s
        whole: tuple[tuple[dict[Guarded, float], CutReason], ...] = (
            (self._waiting, "slow"),
            (self._blocked, "blocked"),
        )
        for connections, reason in whole:
            while connections:
                connection, since = next(iter(connections.items()))
                if since > oldest:
                    break
                self._close(connection, reason)
        self._tell()
        if self._waiting or self._blocked:
            self._look_soon(loop)

    def _close(self, connection: Guarded, reason: CutReason) -> None:
        self.closed(connection)
        # Not close(): that would wait until the client has read what is still to be sent.
        connection.transport.abort()
        self._cut[reason] += 1
        if self._metrics is not None:
            self._metrics.connection_cut(reason)

    def _tell(self) -> None:
        """At most one line for each look, however many there were."""
        if self._cut and self._log is not None:
            self._log.warning("connections cut", **self._cut)
        self._cut.clear()


def allow_files(connections: int) -> int:
    """Let this process have so many connections open, as far as the system does; the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
