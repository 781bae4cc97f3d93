"""The catalogue's writer: plans, encodes, logs and publishes, in a thread; merges in a process."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index import artifact
from index.errors import ArtifactError, OnesearchError
from index.live.catalogue import (
    CatalogueBusy,
    CatalogueClosed,
    LiveCatalogue,
    LiveSettings,
    LiveStatus,
)
from index.live.changes import Applied, Change, Record, Rejected
from index.live.delta import Delta
from index.live.directory import (
    LOG,
    MERGED,
    STATE,
    base_of,
    check_reached,
    locked,
    reached_sequence,
    remove_old_merges,
    write_state,
)
from index.live.listener import Listener
from index.live.log import ChangeLog, repair
from index.live.merger import Merger
from index.live.plan import Plan, plan
from index.live.prepare import prepared
from index.live.replay import replay
from index.live.view import CatalogueView
from index.snapshot import Snapshot

ENCODE_PIECE = 16
"""Items encoded at a time; between pieces searches get the interpreter."""
SWITCH_CHANGES = 2_000
"""A merge is taken over once at most this many changes are left to replay."""
_notes = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Call:
    changes: Sequence[Change]
    done: Future[Applied]
    tag: int


class WritingCatalogue(LiveCatalogue):
    """See `LiveCatalogue`. `listener` hears what happens, for others to follow."""

    def __init__(
        self,
        directory: Path,
        settings: LiveSettings,
        view: CatalogueView,
        lock: int,
        listener: Listener | None,
    ) -> None:
        super().__init__(directory, settings)
        self._listener = listener
        self._heard = None if listener is None else listener.replayed
        self._view = view
        self._lock_file = lock
        self._log = ChangeLog(directory / LOG, view.sequence)
        self._calls: deque[_Call] = deque()
        self._waiting = 0
        self._wake = threading.Condition()
        self._closing = False
        self._failed = ""
        self._applying = threading.Lock()
        self._merging = threading.Lock()
        self._applied = self._rejected = self._publications = self._merges = 0
        self._last_merge_s = 0.0
        self._merge_error = ""
        self._next_merge = 0.0
        self._merge_thread: threading.Thread | None = None
        self._merger = Merger()
        self._writer = threading.Thread(target=self._write, name="catalogue-writer", daemon=True)
        self._writer.start()

    @classmethod
    def opened(
        cls,
        snapshot: Snapshot | Path,
        directory: Path,
        settings: LiveSettings,
        *,
        verify: bool = True,
        listener: Listener | None = None,
        owner: int | None = None,
    ) -> WritingCatalogue:
        """See `LiveCatalogue.open`. `owner`: number of the process to name to others that want the
        directory; this one unless given."""
        try:
            (directory / LOG).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"{directory} cannot be written: {error.strerror}") from None
        lock = locked(directory, os.getpid() if owner is None else owner)
        try:
            note = repair(directory / LOG) or ""
            base = base_of(snapshot, directory, verify=verify)
            view = CatalogueView.of(base)
            view.items.own()
            if listener is not None:
                listener.begun(base.path)
            heard = None if listener is None else listener.replayed
            view = replay(view, directory / LOG, heard=heard)
            reached = reached_sequence(directory)
            check_reached(directory, view.sequence, reached)
            if listener is not None:
                listener.moved()
            if not (directory / STATE).exists():
                write_state(directory, view.origin_version, base.path, view.sequence)
            elif view.sequence > reached:
                _note_reached(directory, view)
            remove_old_merges(directory, keep=base.path)
            if note:
                _notes.warning(note)
            catalogue = cls(directory, settings, view, lock, listener)
            catalogue.note = note
            return catalogue
        except BaseException:
            os.close(lock)
            raise

    @property
    def view(self) -> CatalogueView:
        return self._view

    @property
    def failed(self) -> bool:
        """Whether an error of our own stopped the writing; only opening anew helps."""
        return bool(self._failed)

    def submit(self, changes: Sequence[Change], tag: int = 0) -> Future[Applied]:
        """See `LiveCatalogue.submit`. The listener hears `tag` with the answer."""
        done: Future[Applied] = Future()
        with self._wake:
            if self._closing or self._failed:
                raise CatalogueClosed(self._failed or "the catalogue was closed")
            if self._waiting and self._waiting + len(changes) > self.settings.max_waiting_changes:
                raise CatalogueBusy(f"{self._waiting} changes wait already; try again later")
            self._calls.append(_Call(changes, done, tag))
            self._waiting += len(changes)
            self._wake.notify()
        return done

    def merge(self) -> CatalogueView:
        try:
            with self._merging:
                self._tell_of_merging()
                self._merge_timed()
        finally:
            self._tell_of_merging()
        return self._view

    def _merge_timed(self) -> None:
        started = time.monotonic()
        try:
            self._merge()
            self._merge_error = ""
        except (OnesearchError, OSError) as error:
            self._merge_error = str(error)
            self._next_merge = time.monotonic() + self.settings.merge_retry_s
            raise
        finally:
            self._last_merge_s = time.monotonic() - started
        self._merges += 1

    def export(self, path: Path) -> None:
        artifact.check_free(Path(path), "snapshot", overwrite=False)
        with self._merging:
            through = self._begin_merge()
            base = self._view.base.path
            self._merger.run(base, self.directory / LOG, through, Path(path))

    def status(self) -> LiveStatus:
        view = self._view
        return LiveStatus(
            view.sequence,
            view.n_items,
            view.items.n_added,
            view.n_rows - view.n_items,
            self._waiting,
            self._applied,
            self._rejected,
            self._publications,
            self._log.n_bytes,
            self._merges,
            self._merging.locked(),
            self._last_merge_s,
            self._merge_error,
        )

    def close(self) -> None:
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        self._writer.join()
        self._merger.stop()
        if self._merge_thread is not None:
            self._merge_thread.join()
        with self._merging:
            _note_reached(self.directory, self._view)
            self._log.close()
            os.close(self._lock_file)

    def _write(self) -> None:
        """The writer thread."""
        began = 0.0
        while True:
            with self._wake:
                while not self._calls and not self._closing:
                    self._wake.wait()
                if not self._calls:
                    return
            left_s = began + self.settings.publish_interval_s - time.monotonic()
            if left_s > 0:
                time.sleep(left_s)
            began = time.monotonic()
            calls = self._take()
            if not calls:
                continue
            try:
                with self._applying:
                    answers = self._apply(calls)
            except Exception as error:  # noqa: BLE001  the callers must hear of it, whatever it is
                self._fail(calls, error)
                continue
            for call, answer in zip(calls, answers, strict=True):
                call.done.set_result(answer)
            self._merge_if_due()

    def _take(self) -> list[_Call]:
        """Calls that wait, up to a batch's changes."""
        taken: list[_Call] = []
        count = 0
        with self._wake:
            while self._calls:
                count += len(self._calls[0].changes)
                if taken and count > self.settings.max_batch_changes:
                    break
                taken.append(self._calls.popleft())
            self._waiting -= sum(len(call.changes) for call in taken)
        # From here on a caller cannot cancel.
        return [call for call in taken if call.done.set_running_or_notify_cancel()]

    def _apply(self, calls: list[_Call]) -> list[Applied]:
        view = self._view
        made = plan(view.items, [change for call in calls for change in call.changes])
        delta: Delta | None = None
        if made.accepted:
            record = _encoded(view, made)
            self._log.append(record.to_bytes(), len(made.accepted))
            delta = prepared(view, made, record)
            view = view.with_delta(delta)
            self._view = view
            self._publications += 1
        self._applied += len(made.accepted)
        self._rejected += len(made.rejected)
        answers = _answers(calls, made, view.sequence)
        if self._listener is not None:
            self._listener.made([call.tag for call in calls], answers, delta)
        return answers

    def _fail(self, calls: list[_Call], error: Exception) -> None:
        """Tell callers that their changes were not made.

        What could not be written leaves no trace. Any other failure may have left the next view
        half made, so no more changes are taken; after a restart the log decides.
        """
        if not isinstance(error, OSError):
            _notes.exception("changes could not be applied")
            with self._wake:
                self._failed = f"the catalogue takes no changes since an error: {error!r}"
                waiting = [one for one in self._calls if one.done.set_running_or_notify_cancel()]
                calls = [*calls, *waiting]
                self._calls.clear()
                self._waiting = 0
        reason = self._failed or f"the change log cannot be written: {error}"
        for call in calls:
            call.done.set_exception(CatalogueClosed(reason))

    def _merge_if_due(self) -> None:
        settings, view = self.settings, self._view
        changed = view.items.n_added + view.n_rows - view.n_items
        due = self._log.n_bytes > settings.merge_log_bytes or (
            changed >= settings.merge_min_items and changed > settings.merge_share * view.n_items
        )
        running = self._merge_thread is not None and self._merge_thread.is_alive()
        rested = time.monotonic() >= self._next_merge
        if due and not running and settings.merge_automatically and rested:
            self._merge_thread = threading.Thread(
                target=self._merge_quietly, name="catalogue-merge", daemon=True
            )
            self._merge_thread.start()

    def _merge_quietly(self) -> None:
        try:
            self.merge()
        except (OnesearchError, OSError) as error:
            if not self._closing:
                _notes.warning("merging the catalogue failed: %s", error)

    def _begin_merge(self) -> int:
        """The last change of a merge; later ones go to another segment of the log."""
        with self._applying:
            self._log.rotate()
            return self._view.sequence

    def _merge(self) -> None:
        through = self._begin_merge()
        old = self._view.base
        path = self.directory / f"{MERGED}{through:020d}"
        if old.path != path.absolute():
            self._merger.run(old.path, self.directory / LOG, through, path)
        base = Snapshot.open(path, verify=False, text=old.text_parts)
        write_state(self.directory, self._view.origin_version, path, through)
        listener = self._listener
        if listener is not None:
            listener.begun(base.path)
        view = CatalogueView.of(base)
        view.items.own()
        view = self._caught_up(view)
        if self.on_merge is not None:
            self.on_merge(view)
        if listener is not None:
            listener.prepare()
            view = self._caught_up(view)
        with self._applying:
            self._view = replay(view, self.directory / LOG, heard=self._heard)
            if listener is not None:
                listener.moved()
            self._log.drop_through(through)
        remove_old_merges(self.directory, keep=path)

    def _caught_up(self, view: CatalogueView) -> CatalogueView:
        """A view of the new base, at most SWITCH_CHANGES behind."""
        while self._view.sequence - view.sequence > SWITCH_CHANGES:
            through = self._view.sequence
            view = replay(view, self.directory / LOG, through=through, heard=self._heard)
        return view

    def _tell_of_merging(self) -> None:
        if self._listener is not None:
            self._listener.merging()


def _note_reached(directory: Path, view: CatalogueView) -> None:
    """Say how far the log goes, where the disk takes it."""
    try:
        write_state(directory, view.origin_version, view.base.path, view.sequence)
    except OSError as error:
        _notes.warning("%s cannot be written: %s", directory / STATE, error.strerror)


def _encoded(view: CatalogueView, made: Plan) -> Record:
    """The record of a plan, its new items embedded and given their SIDs as a build does it."""
    embeddings = np.empty((len(made.added), view.dense.dimension), dtype=np.float32)
    for first in range(0, len(made.added), ENCODE_PIECE):
        piece = made.added[first : first + ENCODE_PIECE]
        embeddings[first : first + len(piece)] = view.embed_items([one.item for one in piece])
        if len(made.added) > ENCODE_PIECE:
            time.sleep(0)
    codes = view.codec.encode(embeddings)
    return Record(made.accepted, codes, embeddings.astype(np.float16))


def _answers(calls: list[_Call], made: Plan, sequence: int) -> list[Applied]:
    """What each call hears of the plan of all."""
    answers: list[Applied] = []
    rejected = deque(made.rejected)
    first = 0
    for call in calls:
        end = first + len(call.changes)
        own: list[Rejected] = []
        while rejected and rejected[0].index < end:
            one = rejected.popleft()
            own.append(Rejected(one.index - first, one.item_id, one.reason))
        answers.append(Applied(sequence, len(call.changes) - len(own), tuple(own)))
        first = end
    return answers
