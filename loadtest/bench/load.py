"""HTTP load on one address of this machine: at a given rate, or by clients that wait for answers.

Open loop: requests start at the instants of a Poisson process, whether earlier ones were answered
or not, and latency counts from the instant at which a request was due, so that a server that stalls
is charged for what it kept waiting. Closed loop: each client sends its next request when it has its
answer; a refused client comes back at once.

Server and load share the machine, so this is lean: callbacks on raw connections, no HTTP library,
no task per request.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np

MAX_CONNECTIONS = 512
IDLE_S = 3.0
"""Connections that have idled for longer are not used again: servers close them some time, and a
request may cross with that. Less than any server's time-out here."""
PATIENCE_S = 5.0
"""How long after the last start answers are waited for."""
ANSWERED = frozenset({"200", "degraded"})
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length: "
_NOT_DEGRADED = b'"degraded":[]'


@dataclass(slots=True)
class Tally:
    """What became of the requests of one run. Latencies are in seconds."""

    seconds: float = 0.0
    offered: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])
    """By outcome: "200", "degraded" (a 200 that names itself), other statuses, "lost" (connection
    broken), "unsent" (no connection free), "unanswered"."""
    latencies: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    started_late: list[float] = field(default_factory=list[float])
    """How late each request left; when this grows the load itself was short of time."""

    def add(self, outcome: str, latency: float | None = None) -> None:
        self.outcomes[outcome] += 1
        if latency is not None:
            self.latencies.setdefault(outcome, []).append(latency)

    @property
    def answered(self) -> int:
        """200s, degraded ones too."""
        return sum(self.outcomes[outcome] for outcome in ANSWERED)

    @property
    def goodput(self) -> float:
        """200s per second."""
        return self.answered / self.seconds if self.seconds else 0.0

    def share(self, outcome: str) -> float:
        """Of all requests that were due."""
        return self.outcomes[outcome] / self.offered if self.offered else 0.0

    def percentile(self, share: float, outcomes: frozenset[str] = ANSWERED) -> float:
        """Latency in seconds that `share` of these outcomes did not exceed; NaN without any."""
        found = [value for outcome in outcomes for value in self.latencies.get(outcome, ())]
        return float(np.quantile(found, share)) if found else math.nan


class Ended(NamedTuple):
    """One request that has ended. `due`, `latency`: `time.perf_counter` seconds; `answer`: as it
    came over the wire, head and body, empty where none came whole."""

    request: bytes
    outcome: str
    due: float
    latency: float | None
    answer: bytes


Seen = Callable[[Ended], None]


def post(path: str, body: bytes, host: str = "127.0.0.1") -> bytes:
    """A JSON request as it goes over the wire."""
    return (
        b"POST %s HTTP/1.1\r\nhost: %s\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (path.encode(), host.encode(), len(body), body)
    )


async def offer(
    port: int,
    requests: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    random: np.random.Generator,
    connections: int = MAX_CONNECTIONS,
    seen: Seen | None = None,
) -> Tally:
    """Open loop: `rate` requests a second for `seconds`, drawn from `requests`. `seen` gets every
    one of them when it has ended."""
    gaps = random.exponential(1 / rate, int(rate * seconds * 1.5) + 100)
    due = np.cumsum(gaps)
    due = due[due < seconds]
    chosen = random.integers(len(requests), size=len(due))
    run = _Run(port, connections)
    run.tally.seconds, run.tally.offered, run.seen = seconds, len(due), seen
    await run.open(min(8, connections))
    start = time.perf_counter()
    for instant, which in zip(due.tolist(), chosen.tolist(), strict=True):
        wait = start + instant - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        run.send(requests[which], start + instant)
    await run.finish()
    return run.tally


async def press(
    port: int,
    requests: Sequence[bytes],
    *,
    clients: int,
    seconds: float,
    random: np.random.Generator,
) -> Tally:
    """Closed loop: `clients` that send their next request as soon as they have an answer."""
    chosen = random.integers(len(requests), size=4096)
    run = _Run(port, clients)
    run.tally.seconds = seconds
    await run.open(clients)
    end = time.perf_counter() + seconds

    def again() -> None:
        now = time.perf_counter()
        if now < end:
            run.tally.offered += 1
            run.send(requests[chosen[run.tally.offered % len(chosen)]], now)

    run.answered = again
    for _ in range(clients):
        again()
    await asyncio.sleep(seconds)
    await run.finish()
    return run.tally


class _Run:
    """Connections, idle and busy, and the tally of what came over them."""

    def __init__(self, port: int, most: int) -> None:
        self.tally = Tally()
        self.answered: Callable[[], None] | None = None
        self.seen: Seen | None = None
        self._port = port
        self._most = most
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._quiet = asyncio.Event()

    async def open(self, count: int) -> None:
        for _ in range(count):
            self._idle.append(await self._connect())

    def send(self, request: bytes, due: float) -> None:
        """Send now; the latency counts from `due`."""
        self.tally.started_late.append(time.perf_counter() - due)
        self._pending += 1
        if self._idle and time.perf_counter() - self._idle[-1].idle_since > IDLE_S:
            # The last one in is the first one out, so the others have idled for longer.
            for connection in self._idle:
                self._all.discard(connection)
                connection.close()
            self._idle.clear()
        if self._idle:
            self._idle.pop().send(request, due)
        elif len(self._all) + len(self._opening) < self._most:
            task = asyncio.ensure_future(self._open_and_send(request, due))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        else:
            self.done(None, "unsent", request, due)

    def done(
        self,
        connection: _Connection | None,
        outcome: str,
        request: bytes,
        due: float,
        answer: bytes = b"",
    ) -> None:
        self._pending -= 1
        latency = None if outcome in ("unsent", "lost") else time.perf_counter() - due
        self.tally.add(outcome, latency)
        if self.seen is not None:
            self.seen(Ended(request, outcome, due, latency, answer))
        if connection is not None:
            connection.idle_since = time.perf_counter()
            self._idle.append(connection)
        if not self._pending:
            self._quiet.set()
        if self.answered is not None:
            self.answered()

    def forget(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def finish(self) -> None:
        """Wait for what is still on its way, then close everything."""
        self.answered = None
        if self._pending:
            self._quiet.clear()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._quiet.wait()
            except TimeoutError:
                self.tally.outcomes["unanswered"] += self._pending
        for connection in list(self._all):
            connection.close()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self), "127.0.0.1", self._port
        )
        self._all.add(connection)
        return connection

    async def _open_and_send(self, request: bytes, due: float) -> None:
        try:
            connection = await self._connect()
        except OSError:
            self.done(None, "lost", request, due)
            return
        connection.send(request, due)


class _Connection(asyncio.Protocol):
    """One request at a time; reads as much of an answer as the tally needs."""

    def __init__(self, run: _Run) -> None:
        self.idle_since = time.perf_counter()
        self._run = run
        self._due: float | None = None
        self._request = b""
        self._data = b""
        self._end = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, due: float) -> None:
        assert self._transport is not None
        self._request, self._due, self._data, self._end = request, due, b"", 0
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._end:
            head = self._data.find(_HEAD_END)
            if head < 0:
                return
            place = self._data[:head].lower().index(_LENGTH) + len(_LENGTH)
            length = int(self._data[place : self._data.find(b"\r", place)])
            self._end = head + len(_HEAD_END) + length
        if len(self._data) >= self._end and self._due is not None:
            outcome = self._data[9:12].decode()
            if outcome == "200" and _NOT_DEGRADED not in self._data:
                outcome = "degraded"
            due, self._due = self._due, None
            self._run.done(self, outcome, self._request, due, self._data[: self._end])

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.forget(self)
        if self._due is not None:
            due, self._due = self._due, None
            self._run.done(None, "lost", self._request, due)

    def close(self) -> None:
        self._due = None
        if self._transport is not None:
            self._transport.close()
