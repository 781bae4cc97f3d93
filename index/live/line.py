"""A line of views that is to follow the one that searches get: made from a snapshot and what a
writer tells that it replayed on it, in a thread of its own, while searches go on with the old one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

import orjson

from index.errors import OnesearchError
from index.live.channel import Channel, Kind
from index.live.delta import Delta
from index.live.view import CatalogueView
from index.snapshot import Snapshot


class Line:
    """See the module's head. `base_at` gives the snapshot at a path; `prepare` is called with a
    view before searches get views of the line."""

    def __init__(
        self,
        base: Path,
        channel: Channel,
        base_at: Callable[[Path], Snapshot],
        prepare: Callable[[CatalogueView], None],
    ) -> None:
        self._path = base
        self._channel = channel
        self._base_at = base_at
        self._prepare = prepare
        self._messages: queue.SimpleQueue[tuple[Kind, bytearray] | None] = queue.SimpleQueue()
        self._view: CatalogueView | None = None
        self._is_prepared = False
        self._dropped = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="catalogue-line", daemon=True)
        self._thread.start()

    def put(self, kind: Kind, body: bytearray) -> None:
        """Something that was told of the line."""
        self._messages.put((kind, body))

    def end(self) -> CatalogueView:
        """Its newest view, for searches. Raises what went wrong with it."""
        self._messages.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._view is not None
        return self._view

    def drop(self) -> None:
        """It is not wanted any more."""
        self._dropped = True
        self._messages.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._view = CatalogueView.of(self._base_at(self._path))
            self._view.items.own()
        except (OnesearchError, OSError) as error:
            self._error = error
        for message in iter(self._messages.get, None):
            if self._error is None and not self._dropped:
                self._attempt(*message)
            if message[0] is Kind.PREPARE:
                reason = "" if self._error is None else str(self._error) or repr(self._error)
                self._channel.send((Kind.READY, orjson.dumps(reason)))
        if self._error is None and not self._dropped:
            self._attempt(Kind.PREPARE, bytearray())

    def _attempt(self, kind: Kind, body: bytearray) -> None:
        try:
            assert self._view is not None
            if kind is Kind.REPLAYED:
                self._view = self._view.with_delta(Delta.from_bytes(body))
            elif not self._is_prepared:
                self._prepare(self._view)
                self._is_prepared = True
        except Exception as error:  # noqa: BLE001  the writer must not go on as if it were prepared
            self._error = error
