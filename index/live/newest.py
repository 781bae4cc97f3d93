"""The view that searches get, and the deltas that wait to be laid down on it.

A delta is laid down by who first asks for the view after it came: a search then does not wait for
the interpreter in its middle, and where nobody searches, several are laid down at a time. Laid down
by the thread that hears of them, they cost searches more than they do this way.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from index.live.delta import Delta
from index.live.view import CatalogueView

MAX_UNLAID = 8
"""Deltas that may wait for somebody who asks for the view."""
_notes = logging.getLogger(__name__)


class Newest:
    """See the module's head. `put` and `move` are for one thread, `view` for any. `on_failure` is
    called where a delta cannot be laid down: searches then keep the view that they have."""

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self._on_failure = on_failure
        self._view: CatalogueView | None = None
        self._unlaid: deque[bytearray] = deque()
        self._laying = threading.Lock()

    @property
    def view(self) -> CatalogueView:
        """With all that came so far."""
        if self._unlaid:
            self._lay_down()
        assert self._view is not None, "an opened catalogue has a view"
        return self._view

    @property
    def laid(self) -> CatalogueView | None:
        """The view as it is, None before the first one."""
        return self._view

    def put(self, delta: bytearray) -> None:
        """The next delta."""
        self._unlaid.append(delta)
        if len(self._unlaid) >= MAX_UNLAID:
            self._lay_down()

    def move(self, view: CatalogueView) -> None:
        """Another line's view, which has all that waits."""
        with self._laying:
            # In this order: whoever sees nothing unlaid takes the view as it is.
            self._view = view
            self._unlaid.clear()

    def _lay_down(self) -> None:
        with self._laying:
            while self._unlaid:
                assert self._view is not None
                try:
                    self._view = self._view.with_delta(Delta.from_bytes(self._unlaid[0]))
                except Exception:  # noqa: BLE001  a search must not fail by it
                    # Searches go on with the view as it is, until another writer's is there.
                    _notes.exception("changes cannot be followed")
                    self._unlaid.clear()
                    self._on_failure()
                    return
                self._unlaid.popleft()
