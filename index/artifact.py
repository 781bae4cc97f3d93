"""Immutable directories that others read: datasets, snapshots, checkpoints.

A directory is written under a temporary name beside its final one, every file is synced, the
manifest (with each file's sha256) comes last, and one rename publishes it. So a reader sees a
complete directory or none, whenever the writer is killed. Replacing sets the old directory aside
for the instant between two renames; a writer killed just there leaves the old one aside, and the
next reader or writer puts it back. Leftovers of killed writers are removed by the next writer of
the same name once their process is gone.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson
import psutil

from index.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_HASH_CHUNK_BYTES = 1 << 20
_ASIDE = "old"
_PROGRAMS = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth", ".py", ".so"})
"""Pickles and code, by their names. Nothing of ours reads them; other programs may that are pointed
at a published directory."""


@dataclass(slots=True)
class Draft:
    """A directory being written. `manifest` takes extra keys (parents, metrics, layout, …)."""

    path: Path
    manifest: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a published directory says of itself."""

    kind: str
    version: str
    created: float
    files: dict[str, dict[str, Any]]
    extra: dict[str, Any]


@contextmanager
def create(path: Path, kind: str, *, overwrite: bool = False) -> Generator[Draft, None, None]:
    """Write a directory atomically.

    Raises ArtifactError when `path` exists and `overwrite` is false, or when its parent is no
    directory. With `overwrite` the old directory is replaced only after the new one is complete.
    """
    path = Path(path).absolute()
    recover(path)
    check_free(path, kind, overwrite=overwrite)
    draft_path = path.parent / f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        draft_path.mkdir()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}") from None
    draft = Draft(draft_path)
    try:
        yield draft
        _seal(draft, kind)
        _publish(draft_path, path)
    except BaseException:
        shutil.rmtree(draft_path, ignore_errors=True)
        raise


def check_free(path: Path, kind: str, *, overwrite: bool) -> None:
    """Raises ArtifactError when `path` exists and may not be replaced. Long work asks first.

    Only a directory of the same kind is ever replaced, whatever `overwrite` says.
    """
    if not path.exists():
        return
    if not overwrite:
        raise ArtifactError(
            f"{path} already exists; choose another name, or replace it with --overwrite"
        )
    try:
        found = orjson.loads((path / MANIFEST).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        found = None
    if not isinstance(found, dict) or cast(dict[str, Any], found).get("kind") != kind:
        raise ArtifactError(
            f"{path} is no {kind}, so it is not replaced; choose another name or remove it yourself"
        )


def read(path: Path, kind: str, *, verify: bool = True) -> Manifest:
    """The manifest of a published directory; with `verify` every file's size and sha256 is checked.

    Raises ArtifactError naming the file that is missing or differs.
    """
    path = Path(path)
    recover(path)
    manifest_path = path / MANIFEST
    try:
        raw = orjson.loads(manifest_path.read_bytes())
    except FileNotFoundError:
        reason = "is not there" if not path.exists() else f"has no {MANIFEST}"
        raise ArtifactError(f"{kind} {path} {reason}") from None
    except NotADirectoryError:
        raise ArtifactError(f"{path} is a file; a {kind} is a directory") from None
    except orjson.JSONDecodeError as error:
        raise ArtifactError(f"{manifest_path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict) or not _is_listing(raw.get("files", {})):
        raise ArtifactError(f"{manifest_path} is no manifest of this program; it is damaged")
    if raw.get("kind") != kind:
        raise ArtifactError(f"{path} is a {raw.get('kind')}, expected a {kind}")
    if raw.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {raw.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; build it again"
        )
    missing = [key for key in ("files", "version", "created") if key not in raw]
    if missing:
        raise ArtifactError(f"{manifest_path} has no {missing[0]!r}; it is damaged")
    files = cast(dict[str, dict[str, Any]], raw["files"])
    root = path.resolve()
    for name, facts in files.items():
        _check_file(path / name, root, facts, with_hash=verify)
    known = {"kind", "format_version", "version", "created", "files"}
    extra = {key: value for key, value in raw.items() if key not in known}
    return Manifest(kind, str(raw["version"]), float(raw["created"]), files, extra)


def recover(path: Path) -> None:
    """Put back what a writer set aside if it was killed before its new directory took the place."""
    if path.exists():
        return
    for aside in path.parent.glob(f".{path.name}.{_ASIDE}-*-*"):
        if not _is_alive(aside):
            aside.rename(path)
            return


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write one file atomically: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_listing(files: Any) -> bool:
    """Whether a manifest's `files` has the shape {relative path: {sha256, bytes}}."""
    return isinstance(files, dict) and all(
        isinstance(facts, dict)
        and isinstance(facts.get("bytes"), int)
        and isinstance(facts.get("sha256"), str)
        and not Path(name).is_absolute()
        and ".." not in Path(name).parts
        for name, facts in cast(dict[str, Any], files).items()
    )


def _check_file(path: Path, root: Path, facts: dict[str, Any], *, with_hash: bool) -> None:
    if path.suffix in _PROGRAMS:
        raise ArtifactError(f"{path} is of a kind that runs when it is read; it is not opened")
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; the directory is damaged, build it again")
    if not path.resolve().is_relative_to(root):
        raise ArtifactError(f"{path} is a link to outside of the directory; copy the file there")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise ArtifactError(f"{path} has {size} bytes, its manifest says {facts['bytes']}")
    if with_hash and sha256_of(path) != facts["sha256"]:
        raise ArtifactError(f"{path} differs from its manifest's sha256; it is damaged")


def _seal(draft: Draft, kind: str) -> None:
    """Sync and hash every file, write the manifest. The version digests the contents."""
    files: dict[str, dict[str, Any]] = {}
    for file_path in sorted(p for p in draft.path.rglob("*") if p.is_file()):
        _sync(file_path)
        name = file_path.relative_to(draft.path).as_posix()
        files[name] = {"sha256": sha256_of(file_path), "bytes": file_path.stat().st_size}
    contents = "".join(f"{name}:{facts['sha256']};" for name, facts in files.items())
    manifest = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "version": hashlib.sha256(contents.encode()).hexdigest()[:12],
        "created": time.time(),
        **draft.manifest,
        "files": files,
    }
    write_file(draft.path / MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    for directory in sorted(p for p in draft.path.rglob("*") if p.is_dir()):
        _sync(directory)
    _sync(draft.path)


def _publish(draft_path: Path, path: Path) -> None:
    """Rename into place; an old directory steps aside first and is removed afterwards."""
    aside: Path | None = None
    if path.exists():
        aside = path.parent / f".{path.name}.{_ASIDE}-{os.getpid()}-{secrets.token_hex(4)}"
        path.rename(aside)
    draft_path.rename(path)
    _sync(path.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    for kind in ("tmp", _ASIDE):
        for leftover in path.parent.glob(f".{path.name}.{kind}-*-*"):
            if not _is_alive(leftover):
                shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(leftover: Path) -> bool:
    """Whether the process that made a temporary directory still runs."""
    owner = leftover.name.rsplit("-", 2)[1]
    return not owner.isdigit() or psutil.pid_exists(int(owner))
