"""The keys of a running server: the file's, read again when it changes.

A file that cannot be read any more changes nothing: the keys read last stay valid (until they
expire), the log says so, and a metric shows it. Whoever wants nobody in writes a file without keys.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from structlog.typing import FilteringBoundLogger

from index.errors import ConfigError
from server.keys import Key, KeySet, Refusal
from server.keys_file import Stamp, read_keys, stamp_of

LOOK_S = 1.0


class KeyRing(Collector):
    """Follows one file. Used on one event loop."""

    def __init__(self, path: Path, log: FilteringBoundLogger, look_s: float = LOOK_S) -> None:
        """Reads the file. Raises ConfigError where that is not possible: no server without it."""
        self._path = path
        self._log = log
        self._look_s = look_s
        self._problem = ""
        self._stamp: Stamp | None = None
        self._keys: tuple[Key, ...] = ()
        self._set = KeySet()
        self._read()

    def find(self, text: str) -> Key | Refusal:
        """The valid key that a text is, or why it is none."""
        return self._set.find(text, time.time())

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Look at the file again and again as long as the block lasts."""
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def collect(self) -> Iterable[Metric]:
        """How many keys are valid, when the next one ends, whether the file can be read."""
        now = time.time()
        valid = [key for key in self._keys if not key.ended(now)]
        yield GaugeMetricFamily("onesearch_keys", "API keys that are valid", len(valid))
        ends = [key.expires for key in valid if key.expires is not None]
        yield GaugeMetricFamily(
            "onesearch_keys_next_expiry_seconds",
            "Unix time at which the next API key expires; 0: none does",
            min(ends, default=0.0),
        )
        yield GaugeMetricFamily(
            "onesearch_keys_problem",
            "Whether the keys file cannot be read and older keys are used",
            bool(self._problem),
        )

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            stamp = await asyncio.to_thread(stamp_of, self._path)
            # What could not be read is tried again: its rights may change without its contents.
            if stamp != self._stamp or self._problem:
                try:
                    await asyncio.to_thread(self._read)
                except ConfigError as error:
                    self._stamp = stamp
                    if str(error) != self._problem:
                        self._log.error("keys file not read", detail=str(error))
                    self._problem = str(error)
                else:
                    self._log.info("keys read", keys=len(self._keys))

    def _read(self) -> None:
        # The stamp first: what is written while this reads is seen by the next look.
        stamp = stamp_of(self._path)
        keys = read_keys(self._path)
        self._stamp, self._keys, self._problem = stamp, keys, ""
        self._set = KeySet(keys)
