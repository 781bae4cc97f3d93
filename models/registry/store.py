"""Snapshots and checkpoints by version, each stored once however many generations use it.

    snapshots/VERSION/    checkpoints/VERSION/

Directories come in as they were published, manifest included: first into `work/`, every file
hashed there, then renamed into place. Files are copied, by reference where the file system can
(reflink), so that a later edit of the source does not reach them. Moving links the files instead
and removes the source at the end: until the generation is registered the source is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index import artifact
from index.artifact import MANIFEST, Manifest
from index.errors import ArtifactError
from models.registry.durable import move_durably, remove_durably, sync, work_path

LIVE_SUFFIX = ".live"
"""Of the directory with a snapshot's changes, beside it; see index/live/catalogue.py."""
_EMPTY_LOG_BYTES = 8
_FICLONE = 0x40049409


@dataclass(frozen=True, slots=True)
class Incoming:
    """An artifact on its way in. `draft`: its verified files in `work/`; None when the store has
    a sound copy. `mends`: the store has a damaged one."""

    version: str
    draft: Path | None
    mends: bool = False


class Store:
    """The artifacts of one kind."""

    def __init__(self, directory: Path, kind: str, work: Path) -> None:
        self.directory = directory
        self.kind = kind
        self._work = work

    def path(self, version: str) -> Path:
        """Where a version lies, or would lie."""
        return self.directory / version

    def versions(self) -> list[str]:
        """The stored versions."""
        names = (path.name for path in self.directory.glob("*") if (path / MANIFEST).is_file())
        return sorted(name for name in names if not name.startswith("."))

    def check(self, version: str, *, hashes: bool = True) -> Manifest:
        """The manifest of a stored version that is whole; with `hashes`, every file is read.

        Raises ArtifactError naming the file and what is wrong with it.
        """
        manifest = check_artifact(self.path(version), self.kind, hashes=hashes)
        if manifest.version != version:
            raise ArtifactError(
                f"{self.path(version) / MANIFEST} says version {manifest.version}, expected "
                f"{version}; it is damaged"
            )
        return manifest

    def bring_in(self, source: Path, *, link: bool) -> Incoming:
        """Verified files of a published directory, ready to be put in place. Holds no lock.

        Raises ArtifactError for a damaged source, OSError when the disk will not take it.
        """
        manifest = check_artifact(source, self.kind, hashes=False)
        place = self.path(manifest.version)
        mends = place.exists() and not self._is_sound(manifest.version)
        if place.exists() and not mends:
            if not place.samefile(source):
                check_artifact(source, self.kind, hashes=True)
            return Incoming(manifest.version, None)
        draft = work_path(self._work, f"{self.kind}-{manifest.version}")
        try:
            draft.mkdir()
            for name, facts in manifest.files.items():
                _bring_file(source / name, draft / name, facts, link=link)
            _transfer(source / MANIFEST, draft / MANIFEST, link=link)
            for directory in (draft, *(path for path in draft.rglob("*") if path.is_dir())):
                sync(directory)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return Incoming(manifest.version, draft, mends)

    def settle(self, incoming: Incoming) -> None:
        """Put a draft into its place; a damaged copy that lies there goes. Under the lock."""
        target = self.path(incoming.version)
        if incoming.draft is None:
            if not target.is_dir():
                raise ArtifactError(f"{target} was removed meanwhile; publish again")
            return
        if target.exists():
            if not incoming.mends:
                # Somebody else brought the same version meanwhile.
                shutil.rmtree(incoming.draft, ignore_errors=True)
                return
            remove_durably(target, self._work)
        self.directory.mkdir(parents=True, exist_ok=True)
        move_durably(incoming.draft, target)

    def discard(self, incoming: Incoming) -> None:
        """Remove a draft that was not put into place."""
        if incoming.draft is not None:
            shutil.rmtree(incoming.draft, ignore_errors=True)

    def remove(self, version: str) -> None:
        """Remove a version, and the empty log of changes beside it. Under the lock."""
        live = self.path(version + LIVE_SUFFIX)
        if live.is_dir():
            remove_durably(live, self._work)
        remove_durably(self.path(version), self._work)

    def _is_sound(self, version: str) -> bool:
        try:
            self.check(version)
        except ArtifactError:
            return False
        return True


def check_artifact(path: Path, kind: str, *, hashes: bool) -> Manifest:
    """`artifact.read`, and that the version is the digest of what the manifest lists.

    Raises ArtifactError naming the file and what is wrong with it.
    """
    try:
        manifest = artifact.read(path, kind, verify=hashes)
    except OSError as error:
        where = error.filename or path
        raise ArtifactError(f"{where} cannot be read: {error.strerror or error}") from None
    if manifest.version != version_of(manifest.files):
        raise ArtifactError(
            f"{path / MANIFEST} says version {manifest.version}, its list of files makes "
            f"{version_of(manifest.files)}; it is damaged"
        )
    return manifest


def version_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The version of a directory with these files, in a manifest's order (`artifact.create`)."""
    contents = "".join(f"{name}:{facts['sha256']};" for name, facts in files.items())
    return hashlib.sha256(contents.encode()).hexdigest()[:12]


def changes_beside(snapshot: Path) -> Path | None:
    """The directory with a catalogue's changes beside a snapshot, if it holds any: they exist
    nowhere else."""
    live = snapshot.absolute().with_name(snapshot.name + LIVE_SUFFIX)
    merged = any(live.glob("merged-*"))
    logged = any(path.stat().st_size > _EMPTY_LOG_BYTES for path in live.glob("log/*.log"))
    return live if merged or logged else None


def remove_source(source: Path, kind: str) -> None:
    """Remove a published directory that was moved: what its manifest lists, nothing else."""
    manifest = artifact.read(source, kind, verify=False)
    # Without its manifest it is no published directory any more, however far this gets.
    (source / MANIFEST).unlink()
    for name in manifest.files:
        (source / name).unlink(missing_ok=True)
    folders = [path for path in source.rglob("*") if path.is_dir()]
    for folder in (*sorted(folders, key=lambda path: -len(path.parts)), source):
        if not any(folder.iterdir()):
            folder.rmdir()


def _bring_file(source: Path, target: Path, facts: Mapping[str, Any], *, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _transfer(source, target, link=link)
    if artifact.sha256_of(target) != facts["sha256"]:
        raise ArtifactError(f"{source} differs from its manifest's sha256; it is damaged")


def _transfer(source: Path, target: Path, *, link: bool) -> None:
    """The file's contents at `target`, on disk."""
    if not (link and _linked(source, target)):
        with source.open("rb") as read, target.open("xb") as written:
            try:
                fcntl.ioctl(written.fileno(), _FICLONE, read.fileno())
            except OSError:
                # No reflinks here, or another file system.
                shutil.copyfileobj(read, written, 1 << 20)
            written.flush()
            os.fsync(written.fileno())
    else:
        sync(target)


def _linked(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except OSError:
        return False
    return True
