"""A catalogue that another process writes: this one searches, and follows.

The writer (`index.live.writer`) plans, encodes, logs and merges. What is left to do here for a
batch is to lay down its delta (`index.live.newest`) and to answer the callers, in this order: a
caller that was answered finds its changes in `view`.

Where the writer dies, searches go on with the view that they have, callers that wait hear that
nobody knows what became of their changes, and another writer is started: it opens what the log has,
and this process moves over to that. A writer that is there but does nothing (stopped, or stuck) is
killed, and so replaced in the same way: it has died before another one is started, and holds the
lock of the directory until then.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import orjson

from index.encoder import kind_modules
from index.errors import ArtifactError
from index.live import wire
from index.live.calls import Calls
from index.live.catalogue import CatalogueClosed, LiveCatalogue, LiveSettings, LiveStatus
from index.live.changes import Applied, Change, Rejected
from index.live.channel import Channel, Kind
from index.live.directory import CatalogueHeld
from index.live.line import Line
from index.live.newest import Newest
from index.live.nursery import Nursery, Writer
from index.live.view import CatalogueView
from index.live.writer import TAG, Order
from index.snapshot import Snapshot

RESTART_WAITS_S = (0.0, 1.0, 5.0, 30.0)
"""Before the first, second, … restart of writers that did not live for long; then the last."""
LONG_LIFE_S = 60.0
CLOSE_S = 10.0
"""A writer that is to end and tells nothing for this long is killed; what was acknowledged is in
its log."""
SILENCE_S = 20.0
"""A writer that was not heard for so long is stopped: each tells that it is there all the time."""
STUCK_S = 600.0
"""One that is there, but has answered none of those who wait for so long, will not. Far longer than
callers wait: large batches may take their time."""
_LOOK_S = 0.5
_notes = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Counters:
    publications: int = 0
    log_bytes: int = 0
    merges: int = 0
    merging: bool = False
    last_merge_s: float = 0.0
    merge_error: str = ""


class FollowingCatalogue(LiveCatalogue):
    """See the module's head and `LiveCatalogue`."""

    def __init__(
        self,
        snapshot: Snapshot | Path,
        directory: Path,
        settings: LiveSettings,
        verify: bool,
        nursery: Nursery,
    ) -> None:
        super().__init__(directory, settings)
        self._nursery = nursery.share()
        self._origin = snapshot
        self._verify = verify
        self._newest = Newest(self._end_writer)
        self._calls = Calls(settings.max_waiting_changes)
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._hearing: Channel | None = None
        self._child: Writer | None = None
        self._line: Line | None = None
        self._tasks: dict[int, Future[None]] = {}
        self._next_tag = 0
        self._applied = self._rejected = 0
        self._counters = _Counters()
        self._opened: Future[None] = Future()
        self._closing = threading.Event()
        self._closed = False
        self._heard_at = self._alive_at = 0.0
        self._thread = threading.Thread(target=self._run, name="catalogue-follower", daemon=True)
        self._thread.start()

    @classmethod
    def opened(
        cls,
        snapshot: Snapshot | Path,
        directory: Path,
        settings: LiveSettings,
        *,
        verify: bool = True,
        nursery: Nursery | None = None,
    ) -> FollowingCatalogue:
        """See `LiveCatalogue.open`. `nursery`: where the writer comes from, one of its own unless
        given."""
        catalogue = cls(snapshot, directory, settings, verify, nursery or Nursery())
        try:
            catalogue._opened.result()
        except BaseException:
            catalogue.close()
            raise
        return catalogue

    @property
    def nursery(self) -> Nursery:
        return self._nursery

    @property
    def view(self) -> CatalogueView:
        return self._newest.view

    @property
    def writer(self) -> int:
        """Number of the process that writes; 0 for none at the moment."""
        child = self._child
        return 0 if child is None else child.pid

    def submit(self, changes: Sequence[Change]) -> Future[Applied]:
        """See `LiveCatalogue.submit`. What was submitted is under way: it cannot be cancelled."""
        data = wire.to_bytes(changes)
        with self._lock:
            channel, tag = self._open_channel(), self._new_tag()
            done = self._calls.put(tag, len(changes))
            channel.send((Kind.CALL, TAG.pack(tag) + data))
        return done

    def merge(self) -> CatalogueView:
        self._task(Kind.MERGE)
        return self.view

    def export(self, path: Path) -> None:
        self._task(Kind.EXPORT, str(Path(path).absolute()))

    def status(self) -> LiveStatus:
        view, counters = self.view, self._counters
        return LiveStatus(
            view.sequence,
            view.n_items,
            view.items.n_added,
            view.n_rows - view.n_items,
            self._calls.waiting,
            self._applied,
            self._rejected,
            counters.publications,
            counters.log_bytes,
            counters.merges,
            counters.merging,
            counters.last_merge_s,
            counters.merge_error,
        )

    def close(self) -> None:
        with self._lock:
            self._closing.set()
            channel = self._channel
        if channel is not None:
            channel.flush(CLOSE_S)
            channel.finish()
        began = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(_LOOK_S)
            child = self._child
            if child is not None and time.monotonic() > max(began, self._heard_at) + CLOSE_S:
                child.kill()
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._nursery.leave()

    def _open_channel(self) -> Channel:
        if self._closing.is_set():
            raise CatalogueClosed("the catalogue was closed")
        if self._channel is None or self._newest.laid is None:
            raise CatalogueClosed("the catalogue's writer is being started again; try again later")
        return self._channel

    def _new_tag(self) -> int:
        self._next_tag = (self._next_tag + 1) & 0xFFFFFFFF
        return self._next_tag

    def _task(self, kind: Kind, *arguments: str) -> None:
        """Have the writer do something that takes long."""
        done: Future[None] = Future()
        with self._lock:
            channel = self._open_channel()
            tag = self._new_tag()
            self._tasks[tag] = done
            channel.send((kind, orjson.dumps([tag, *arguments])))
        done.result()

    def _run(self) -> None:
        """The follower's thread."""
        _be_patient()
        short_lives = 0
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                self._follow()
            except Exception as error:  # noqa: BLE001  whoever opens must hear of it, whatever it is
                if not self._opened.done():
                    self._opened.set_exception(error)
                else:
                    _notes.exception("the catalogue cannot be followed")
            finally:
                self._end_child()
            if not self._opened.done():
                self._opened.set_exception(
                    ArtifactError(f"the writer of {self.directory} ended before it had opened it")
                )
            if self._closing.is_set() or self._opened.exception() is not None:
                return
            if time.monotonic() - began > LONG_LIFE_S:
                short_lives = 0
            wait_s = RESTART_WAITS_S[min(short_lives, len(RESTART_WAITS_S) - 1)]
            short_lives += 1
            _notes.warning(
                "the process that writes %s ended; another one is started", self.directory
            )
            self._closing.wait(wait_s)

    def _follow(self) -> None:
        """Start a writer and hear what it tells, to its end."""
        ours, theirs = socket.socketpair()
        channel = Channel(ours)
        path = self._origin.path if isinstance(self._origin, Snapshot) else self._origin
        order = Order.of(Path(path).absolute(), self.directory, self.settings, kind_modules())
        self._hearing = channel
        with theirs:
            self._child = self._nursery.bear(theirs, order)
        self._alive_at = time.monotonic()
        for kind, body in channel.messages(self._look_after):
            self._alive_at = time.monotonic()
            if kind is not Kind.ALIVE:
                self._heard_at = self._alive_at
                self._hear(channel, kind, body)

    def _look_after(self) -> None:
        """Nothing has come for a while: does somebody wait for too long, is the writer well?"""
        self._calls.tell_late_ones()
        silent_s, stuck_s = time.monotonic() - self._alive_at, self._calls.stuck_s()
        if silent_s > SILENCE_S:
            reason = f"gives no sign of life for {silent_s:.0f} s"
        elif stuck_s > STUCK_S:
            reason = f"has answered nobody for {stuck_s:.0f} s"
        else:
            return
        _notes.error("the process that writes %s %s: it is killed", self.directory, reason)
        self._end_writer()

    def _hear(self, channel: Channel, kind: Kind, body: bytearray) -> None:
        if kind is Kind.DELTA:
            self._newest.put(body)
        elif kind is Kind.ANSWERS:
            self._answer(body)
        elif kind is Kind.FAILED:
            tag, reason = orjson.loads(body)
            self._calls.answer(tag, CatalogueClosed(reason))
        elif kind is Kind.COUNTERS:
            self._counters = _Counters(*orjson.loads(body))
        elif kind is Kind.BEGUN:
            path = Path(orjson.loads(body))
            self._line = Line(path, channel, self._base_at, self._prepare)
        elif kind in (Kind.REPLAYED, Kind.PREPARE):
            assert self._line is not None
            self._line.put(kind, body)
        elif kind is Kind.MOVED:
            assert self._line is not None
            line, self._line = self._line, None
            self._newest.move(line.end())
        elif kind is Kind.OPENED:
            self._open(channel, orjson.loads(body))
        elif kind is Kind.DONE:
            self._finish_task(*orjson.loads(body))
        elif kind is Kind.NOTE:
            level, text = orjson.loads(body)
            _notes.log(level, "%s", text)
        else:
            assert kind is Kind.REFUSED
            name, text = orjson.loads(body)
            raise (CatalogueHeld if name == CatalogueHeld.__name__ else ArtifactError)(text)

    def _base_at(self, path: Path) -> Snapshot:
        """The snapshot at a path, the one at hand where that is it. Raises ArtifactError."""
        view = self._newest.laid
        if view is not None and view.base.path.absolute() == path:
            return view.base
        origin = self._origin if isinstance(self._origin, Snapshot) else None
        if origin is not None and origin.path.absolute() == path:
            return origin
        known = origin if view is None else view.base
        text = None if known is None else known.text_parts
        return Snapshot.open(path, verify=self._verify and view is None, text=text)

    def _prepare(self, view: CatalogueView) -> None:
        """Searches get a view of this line soon."""
        known = self._newest.laid
        if self.on_merge is not None and known is not None and view.base is not known.base:
            self.on_merge(view)

    def _open(self, channel: Channel, note: str) -> None:
        """Changes are taken from now on."""
        with self._lock:
            self._channel = channel
        if not self._opened.done():
            self.note = note
            self._opened.set_result(None)

    def _answer(self, body: bytearray) -> None:
        told, counters = orjson.loads(body)
        self._counters = _Counters(*counters)
        for tag, sequence, applied, rejected in told:
            self._applied += applied
            self._rejected += len(rejected)
            reasons = tuple([Rejected(*one) for one in rejected])
            self._calls.answer(tag, Applied(sequence, applied, reasons))

    def _finish_task(self, tag: int, error: str | None) -> None:
        done = self._tasks.pop(tag)
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(ArtifactError(error))

    def _end_writer(self) -> None:
        """Another one is started then."""
        child = self._child
        if child is not None:
            child.kill()

    def _end_child(self) -> None:
        """See a writer off whose messages have ended, and tell those who wait for it."""
        with self._lock:
            self._channel = None
            tasks, self._tasks = self._tasks, {}
        line, self._line = self._line, None
        if line is not None:
            line.drop()
        child, self._child = self._child, None
        if self._hearing is not None:
            self._hearing.close()
        # It has nobody to talk to: it finishes what it has and ends.
        if child is not None and not child.wait(CLOSE_S):
            child.kill()
            child.wait(CLOSE_S)
        self._calls.drop()
        for task in tasks.values():
            task.set_exception(ArtifactError("the catalogue was closed"))


def _be_patient() -> None:
    """Let this thread, and what it starts, wait for a processor to be free, where the system knows
    the like: it does not take a search's when it is woken."""
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
