"""The catalogue that changes while it is searched.

```
SNAPSHOT.live/
  state.json       the snapshot that the changes started from, and the last merge
  log/             the changes behind it (`index.live.log`)
  merged-NUMBER/   the last merge: a snapshot through change NUMBER
  lock             held by the one process that writes
```
Readers take `view` once and use it for a whole search; nothing ever makes them wait. Writers hand
in changes from any thread. One thread takes all that wait together: it plans them, encodes new
items, appends one record to the log, syncs it, and publishes the next view; then each caller hears
what became of its changes. So whatever was acknowledged is on disk and in the next search.

A merge runs in a process of its own and leads to a snapshot; then the log's changes since are
replayed on it and the catalogue goes on from there. Views of the old base stay usable.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson

from index import artifact
from index.errors import ArtifactError, ConfigError, OnesearchError
from index.live.changes import Applied, Change, Record, Rejected
from index.live.log import ChangeLog, repair
from index.live.plan import Plan, plan
from index.live.replay import replay
from index.live.view import CatalogueView
from index.snapshot import Snapshot

SUFFIX = ".live"
ENCODE_PIECE = 16
"""Items encoded at a time; between pieces searches get the interpreter."""
SWITCH_CHANGES = 2_000
"""A merge is taken over once at most this many changes are left to replay."""
_STATE = "state.json"
_LOCK = "lock"
_LOG = "log"
_MERGED = "merged-"
_notes = logging.getLogger(__name__)


class CatalogueHeld(ArtifactError):
    """Another process has the live directory open for changes."""


class CatalogueBusy(OnesearchError):
    """More changes wait than the catalogue takes; try again later."""


class CatalogueClosed(OnesearchError):
    """The catalogue takes no changes: it was closed, or its disk refused."""


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """When to merge, and how changes are taken together."""

    merge_share: float = 0.05
    """Merge when this share of the items was added or removed since the last merge …"""
    merge_min_items: int = 10_000
    """… and at least this many."""
    merge_log_bytes: int = 256 << 20
    """Merge when the log is larger than this."""
    merge_retry_s: float = 300.0
    """After a merge that failed none starts by itself for this long."""
    merge_automatically: bool = True
    publish_interval_s: float = 0.006
    """Batches begin at most this often; the first change after a pause does not wait."""
    max_batch_changes: int = 2_048
    max_waiting_changes: int = 100_000

    def __post_init__(self) -> None:
        if self.merge_share <= 0 or min(self.merge_min_items, self.merge_log_bytes) < 1:
            raise ConfigError("thresholds of a merge must be above 0")
        if self.publish_interval_s < 0 or self.max_batch_changes < 1:
            raise ConfigError("publish_interval_s must be at least 0, max_batch_changes at least 1")


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """Counters of a catalogue; `merge_error` is "" when the last merge went well."""

    sequence: int
    items: int
    added_rows: int
    deleted_rows: int
    waiting_changes: int
    applied: int
    rejected: int
    publications: int
    log_bytes: int
    merges: int
    merging: bool
    last_merge_s: float
    merge_error: str


@dataclass(slots=True, eq=False)
class _Call:
    changes: Sequence[Change]
    done: Future[Applied]


class LiveCatalogue:
    """See the module's head. Use `open`; close it in the end."""

    def __init__(
        self, directory: Path, view: CatalogueView, lock: int, settings: LiveSettings, note: str
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.note = note
        """What opening mended, for a person; "" for nothing."""
        self.on_merge: Callable[[CatalogueView], None] | None = None
        """Called with the first view of a new base, in the merging thread, just before searches
        get it: whoever keeps things by base trie prepares them here."""
        self._view = view
        self._lock_file = lock
        self._log = ChangeLog(directory / _LOG, view.sequence)
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
        self._child: subprocess.Popen[bytes] | None = None
        self._writer = threading.Thread(target=self._write, name="catalogue-writer", daemon=True)
        self._writer.start()

    @classmethod
    def open(
        cls,
        snapshot: Snapshot | Path,
        directory: Path | None = None,
        settings: LiveSettings | None = None,
        *,
        verify: bool = True,
    ) -> LiveCatalogue:
        """The catalogue of a snapshot with the changes that `directory` (SNAPSHOT.live) holds.

        Raises ArtifactError when something is damaged, belongs to another snapshot, or when another
        process has the directory open for changes.
        """
        path = snapshot.path if isinstance(snapshot, Snapshot) else Path(snapshot)
        directory = live_directory(path) if directory is None else Path(directory)
        try:
            (directory / _LOG).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"{directory} cannot be written: {error.strerror}") from None
        lock = _locked(directory)
        try:
            note = repair(directory / _LOG) or ""
            view = _view(snapshot, directory, verify=verify)
            if not (directory / _STATE).exists():
                _write_state(directory, view.origin_version, None)
            _remove_old_merges(directory, keep=view.base.path)
            if note:
                _notes.warning(note)
            return cls(directory, view, lock, settings or LiveSettings(), note)
        except BaseException:
            os.close(lock)
            raise

    @property
    def view(self) -> CatalogueView:
        """The catalogue as it is now."""
        return self._view

    def apply(self, changes: Sequence[Change]) -> Applied:
        """Make changes; on return they are on disk and in `view`. Callable from any thread.

        Raises CatalogueBusy when too many wait, CatalogueClosed when none are taken any more.
        """
        return self.submit(changes).result()

    def submit(self, changes: Sequence[Change]) -> Future[Applied]:
        """Like `apply`, without waiting for the result. Cancelling it before the changes are taken
        up drops them."""
        done: Future[Applied] = Future()
        with self._wake:
            if self._closing or self._failed:
                raise CatalogueClosed(self._failed or "the catalogue was closed")
            if self._waiting and self._waiting + len(changes) > self.settings.max_waiting_changes:
                raise CatalogueBusy(f"{self._waiting} changes wait already; try again later")
            self._calls.append(_Call(changes, done))
            self._waiting += len(changes)
            self._wake.notify()
        return done

    def merge(self) -> CatalogueView:
        """Write the catalogue as it is to a snapshot and go on from there; returns the new view.

        Searches and changes go on meanwhile. Raises ArtifactError when it failed; the catalogue
        then stays as it was.
        """
        with self._merging:
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
        return self._view

    def export(self, path: Path) -> None:
        """Write the catalogue as it is to a snapshot at `path`, of no further concern here.

        Raises ArtifactError when `path` exists or the writing failed.
        """
        artifact.check_free(Path(path), "snapshot", overwrite=False)
        with self._merging:
            through = self._begin_merge()
            self._run_merge(through, Path(path))

    def status(self) -> LiveStatus:
        """Counters, for metrics."""
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
        """Take no more changes, finish those that wait, stop a merge, release the directory."""
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        self._writer.join()
        if self._child is not None:
            self._child.terminate()
        if self._merge_thread is not None:
            self._merge_thread.join()
        with self._merging:
            self._log.close()
            os.close(self._lock_file)

    def __enter__(self) -> LiveCatalogue:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

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
        if made.accepted:
            record = _encoded(view, made)
            self._log.append(record.to_bytes(), len(made.accepted))
            view = view.after(made, record)
            self._view = view
            self._publications += 1
        self._applied += len(made.accepted)
        self._rejected += len(made.rejected)
        return _answers(calls, made, view.sequence)

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
        path = self.directory / f"{_MERGED}{through:020d}"
        if old.path != path.absolute():
            self._run_merge(through, path)
        base = Snapshot.open(path, verify=False, text=old.text_parts)
        _write_state(self.directory, self._view.origin_version, path.name)
        view = CatalogueView.of(base)
        log = self.directory / _LOG
        while self._view.sequence - view.sequence > SWITCH_CHANGES:
            view = replay(view, log, through=self._view.sequence)
        if self.on_merge is not None:
            self.on_merge(view)
        with self._applying:
            self._view = replay(view, log)
            self._log.drop_through(through)
        _remove_old_merges(self.directory, keep=path)

    def _run_merge(self, through: int, path: Path) -> None:
        base, log = self._view.base.path, self.directory / _LOG
        command = [sys.executable, "-m", "index.live.merge", base, log, str(through), path]
        if self._closing:
            raise ArtifactError("the catalogue was closed")
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_environment(),
        )
        try:
            # Its standard input stays open as long as we live: that is how it knows.
            assert self._child.stderr is not None
            told = self._child.stderr.read()
            if self._child.wait():
                lines = told.decode(errors="replace").strip().splitlines() or ["no reason given"]
                raise ArtifactError(f"the catalogue could not be merged: {lines[-1]}")
        finally:
            child, self._child = self._child, None
            for pipe in (child.stdin, child.stderr):
                if pipe is not None:
                    pipe.close()


def live_directory(snapshot: Path) -> Path:
    """Where the changes of a snapshot lie: beside it."""
    snapshot = Path(snapshot).absolute()
    return snapshot.with_name(snapshot.name + SUFFIX)


def read_view(
    snapshot: Path, directory: Path | None = None, *, verify: bool = True
) -> CatalogueView:
    """A snapshot with its changes, to look at: nothing is locked, mended or written.

    A writer may be at work: a record that it has not finished ends the log. Raises ArtifactError
    like `LiveCatalogue.open`.
    """
    directory = live_directory(snapshot) if directory is None else Path(directory)
    return _view(Path(snapshot), directory, verify=verify, unfinished=True)


def _view(
    snapshot: Snapshot | Path, directory: Path, *, verify: bool, unfinished: bool = False
) -> CatalogueView:
    base = _base(snapshot, directory, verify=verify)
    return replay(CatalogueView.of(base), directory / _LOG, unfinished=unfinished)


def _base(snapshot: Snapshot | Path, directory: Path, *, verify: bool) -> Snapshot:
    """The last merge, or the snapshot itself while there is none."""
    state = directory / _STATE
    if isinstance(snapshot, Snapshot):
        origin, version, path = snapshot, snapshot.version, snapshot.path
    else:
        origin, path = None, Path(snapshot)
        version = artifact.read(path, "snapshot", verify=False).version
    try:
        facts = cast(dict[str, Any], orjson.loads(state.read_bytes()))
        started, merged = str(facts["origin"]), cast(str | None, facts["merged"])
    except FileNotFoundError:
        if any(directory.glob(f"{_MERGED}*")):
            raise ArtifactError(
                f"{directory} holds a merge but no {_STATE}, which says what it is of; restore "
                f"{_STATE}, or remove {directory} to drop the changes"
            ) from None
        started, merged = version, None
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{state} cannot be read: {error!r}") from None
    if started != version:
        raise ArtifactError(
            f"{directory} holds changes of snapshot version {started}, {path} is version "
            f"{version}; remove {directory} to drop those changes"
        )
    if merged is None:
        return origin or Snapshot.open(path, verify=verify)
    text = None if origin is None else origin.text_parts
    return Snapshot.open(directory / merged, verify=verify, text=text)


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


def _locked(directory: Path) -> int:
    """The open, locked lock file of a directory."""
    path = directory / _LOCK
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(file, 20).decode(errors="replace").strip() or "unknown"
        os.close(file)
        raise CatalogueHeld(
            f"{directory} is open for changes in another process (number {owner}); stop that one, "
            "or send it the changes"
        ) from None
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file


def _write_state(directory: Path, origin: str, merged: str | None) -> None:
    artifact.write_file(directory / _STATE, orjson.dumps({"origin": origin, "merged": merged}))


def _remove_old_merges(directory: Path, keep: Path) -> None:
    for path in directory.glob(f"{_MERGED}*"):
        if path.absolute() != keep.absolute():
            shutil.rmtree(path, ignore_errors=True)


def _environment() -> dict[str, str]:
    """For the merging process: our modules, one thread."""
    paths = [path for path in sys.path if path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
