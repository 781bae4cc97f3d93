"""Calls that were handed to a writer and wait for its answers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass

from index.live.catalogue import CatalogueBusy, CatalogueClosed, CatalogueUnsure
from index.live.changes import Applied

ANSWER_S = 30.0
"""Callers hear after this long that a writer does not answer: it was stopped, or its disk hangs."""


@dataclass(slots=True, eq=False)
class Call:
    """`count` changes, handed in at `began` (monotonic)."""

    done: Future[Applied]
    count: int
    began: float


class Calls:
    """The calls of a catalogue, by tag. For any thread: each call is ended once."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._calls: dict[int, Call] = {}
        self._answered = 0.0
        self.waiting = 0
        """Changes that wait."""

    def put(self, tag: int, count: int) -> Future[Applied]:
        """A call is handed in. Raises CatalogueClosed where the oldest waits too long already,
        CatalogueBusy where too many changes would wait."""
        done: Future[Applied] = Future()
        # What was handed in is under way: it cannot be cancelled.
        done.set_running_or_notify_cancel()
        with self._lock:
            now = time.monotonic()
            # The first is the oldest.
            oldest = next(iter(self._calls.values()), None)
            if oldest is not None and now > oldest.began + ANSWER_S:
                raise CatalogueClosed(
                    f"the catalogue's writer has not answered for {now - oldest.began:.0f} s; try "
                    "again later"
                )
            if self.waiting and self.waiting + count > self._max_waiting:
                raise CatalogueBusy(f"{self.waiting} changes wait already; try again later")
            self.waiting += count
            self._calls[tag] = Call(done, count, now)
        return done

    def answer(self, tag: int, answer: Applied | CatalogueClosed) -> None:
        """The writer has answered, or said why not."""
        with self._lock:
            call = self._calls.pop(tag)
            self.waiting -= call.count
            self._answered = time.monotonic()
        if call.done.done():
            return
        if isinstance(answer, Applied):
            call.done.set_result(answer)
        else:
            call.done.set_exception(answer)

    def stuck_s(self) -> float:
        """For how long calls have waited without any being answered; 0 while none waits."""
        with self._lock:
            oldest = next(iter(self._calls.values()), None)
            if oldest is None:
                return 0.0
            return time.monotonic() - max(oldest.began, self._answered)

    def tell_late_ones(self) -> None:
        """Tell callers that have waited too long. The writer may still answer, so they count as
        waiting on."""
        late = time.monotonic() - ANSWER_S
        with self._lock:
            calls = [call for call in self._calls.values() if call.began < late]
        reason = f"the catalogue's writer has not answered for {ANSWER_S:.0f} s"
        _leave_unsure(calls, f"{reason}; whether these changes are made is not known")

    def drop(self) -> None:
        """The writer has ended: nobody answers any more."""
        with self._lock:
            calls, self._calls = list(self._calls.values()), {}
            self.waiting = 0
        reason = "the catalogue's writer ended"
        _leave_unsure(calls, f"{reason}; whether these changes were made is not known")


def _leave_unsure(calls: list[Call], reason: str) -> None:
    for call in calls:
        if not call.done.done():
            call.done.set_exception(CatalogueUnsure(f"{reason}, so send them again"))
