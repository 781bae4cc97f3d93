"""The directory of a live catalogue: what lies in it, who may write, what it leads to.

```
SNAPSHOT.live/
  state.json       the snapshot that the changes started from, the last merge, and a change that
                   the log reached: one that ends before it has lost something
  log/             the changes behind it (`index.live.log`)
  merged-NUMBER/   the last merge: a snapshot through change NUMBER
  lock             held by the one process that writes; names the process that answers for it
```
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Any, cast

import orjson
import psutil

from index import artifact
from index.errors import ArtifactError
from index.live.log import read_log, segments_of
from index.live.replay import replay
from index.live.view import CatalogueView
from index.snapshot import Snapshot

SUFFIX = ".live"
STATE = "state.json"
LOG = "log"
MERGED = "merged-"
ORPHAN_WAIT_S = 20.0
"""How long a writer whose process was killed may take to finish before it counts as held."""
DYING_S = 0.25
"""A process that was just killed may look alive for a moment."""
_LOCK = "lock"
_LOOK_S = 0.02


class CatalogueHeld(ArtifactError):
    """Another process has the live directory open for changes."""


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
    base = base_of(Path(snapshot), directory, verify=verify)
    reached = reached_sequence(directory)
    view = replay(CatalogueView.of(base), directory / LOG, unfinished=True)
    check_reached(directory, view.sequence, reached)
    return view


def base_of(snapshot: Snapshot | Path, directory: Path, *, verify: bool) -> Snapshot:
    """The last merge, or the snapshot itself while there is none. A snapshot that a merge led to
    stands for the one that its changes started from. Raises ArtifactError."""
    state = directory / STATE
    if isinstance(snapshot, Snapshot):
        given, version, path, facts = snapshot, snapshot.version, snapshot.path, snapshot.manifest
    else:
        given, path = None, Path(snapshot)
        manifest = artifact.read(path, "snapshot", verify=False)
        version, facts = manifest.version, manifest.extra
    changes = cast(dict[str, Any], facts.get("live", {}))
    version, sequence = str(changes.get("origin", version)), int(changes.get("sequence", 0))
    try:
        facts = cast(dict[str, Any], orjson.loads(state.read_bytes()))
        started, merged = str(facts["origin"]), cast(str | None, facts["merged"])
    except FileNotFoundError:
        if any(directory.glob(f"{MERGED}*")):
            raise ArtifactError(
                f"{directory} holds a merge but no {STATE}, which says what it is of; restore "
                f"{STATE}, or remove {directory} to drop the changes"
            ) from None
        started, merged = version, None
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{state} cannot be read: {error!r}") from None
    if started != version:
        raise ArtifactError(
            f"{directory} holds changes of snapshot version {started}, {path} is version "
            f"{version}; remove {directory} to drop those changes"
        )
    _check_covers(directory, path, sequence)
    if merged is None:
        return given or Snapshot.open(path, verify=verify)
    text = None if given is None else given.text_parts
    return Snapshot.open(directory / merged, verify=verify, text=text)


def _check_covers(directory: Path, snapshot: Path, sequence: int) -> None:
    """Raises ArtifactError where a log ends before the last change that a snapshot holds: they are
    of two places, and what follows in the one does not fit the other."""
    segments = segments_of(directory / LOG)
    if not segments or sequence < int(segments[0].stem):
        return
    if next(read_log(directory / LOG, sequence - 1, unfinished=True), None) is None:
        raise ArtifactError(
            f"{snapshot} holds {sequence} changes of its catalogue, {directory / LOG} has fewer: "
            f"it is of another place; remove {directory} to drop those changes"
        )


def reached_sequence(directory: Path) -> int:
    """A change that the log reached, 0 for none known; `base_of` has found the state sound."""
    try:
        return int(orjson.loads((directory / STATE).read_bytes()).get("sequence", 0))
    except FileNotFoundError:
        return 0


def check_reached(directory: Path, sequence: int, reached: int) -> None:
    """Raises ArtifactError where a log that ends at change `sequence` has lost some."""
    if sequence < reached:
        raise ArtifactError(
            f"{directory / LOG} ends at change {sequence}, but change {reached} was made; restore "
            f'the log from a backup, or set "sequence" in {directory / STATE} to {sequence} to go '
            "on without the changes between them"
        )


def locked(directory: Path, owner: int) -> int:
    """The open, locked lock file of a directory; it says that process `owner` answers for it.

    Raises CatalogueHeld when another process has it. A writer whose owner is gone is finishing what
    it was given: it is waited for.
    """
    path = directory / _LOCK
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}") from None
    began = time.monotonic()
    while not _taken(file):
        holder = os.pread(file, 20, 0).decode(errors="replace").strip()
        wait_s = ORPHAN_WAIT_S if holder.isdigit() and _has_ended(int(holder)) else DYING_S
        if time.monotonic() > began + wait_s:
            os.close(file)
            raise CatalogueHeld(
                f"{directory} is open for changes in another process (number "
                f"{holder or 'unknown'}); stop that one, or send it the changes"
            )
        time.sleep(_LOOK_S)
    os.ftruncate(file, 0)
    os.pwrite(file, f"{owner}\n".encode(), 0)
    return file


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _has_ended(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def write_state(directory: Path, origin: str, base: Path, sequence: int) -> None:
    """Say which snapshot the changes started from, that the last merge is `base` if it is one, and
    that change `sequence` is on disk."""
    merged = base.name if base.absolute().parent == directory.absolute() else None
    facts = {"origin": origin, "merged": merged, "sequence": sequence}
    artifact.write_file(directory / STATE, orjson.dumps(facts))


def remove_old_merges(directory: Path, keep: Path) -> None:
    """Remove all merges but one, and what killed ones left. None may be at work."""
    for path in directory.glob(f"{MERGED}*"):
        if path.absolute() != keep.absolute():
            shutil.rmtree(path, ignore_errors=True)
    remove_drafts(directory / f"{MERGED}*")
    for path in directory.glob(f".{STATE}.tmp-*"):
        path.unlink(missing_ok=True)


def remove_drafts(path: Path) -> None:
    """Remove what a merge to `path` left that was killed."""
    for draft in path.parent.glob(f".{path.name}.tmp-*"):
        shutil.rmtree(draft, ignore_errors=True)
