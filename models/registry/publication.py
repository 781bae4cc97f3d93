"""Publishing: a snapshot and a checkpoint become a generation, or nothing happens.

Files are copied and hashed without a lock; then, under it, both parts get their places and the
generation its record, last. A process killed before that leaves parts that nobody names.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.errors import ArtifactError
from models.registry.durable import remove_durably
from models.registry.record import GenerationRecord, write_record
from models.registry.registry import Provenance, Registry, check_fit
from models.registry.store import Incoming, Store, changes_beside, remove_source


@dataclass(frozen=True, slots=True)
class Published:
    """A generation that is registered. `is_new`: it was not before. `notes`: for a person."""

    record: GenerationRecord
    is_new: bool
    notes: tuple[str, ...] = ()


def publish(
    registry: Registry,
    snapshot: Path | str,
    checkpoint: Path | str,
    *,
    move: bool = False,
    parents: tuple[str, ...] | None = None,
    metrics: Mapping[str, Any] | None = None,
    by: Provenance | None = None,
) -> Published:
    """Register a pair. Either may be a directory or a version that is stored already. With `move`
    the directories are removed once all is registered.

    `parents`: the generations it comes from; the champion unless given. Raises ArtifactError for
    damaged or unfitting parts, and when the disk is full; nothing is registered then.
    """
    notes = _notes_of_changes(snapshot, move=move)
    registry.make()
    given = ((registry.snapshots, snapshot), (registry.checkpoints, checkpoint))
    sources = [(store, _source(store, one)) for store, one in given]
    incoming: list[tuple[Store, Incoming]] = []
    with registry.told():
        try:
            for store, source in sources:
                incoming.append((store, store.bring_in(source, link=move)))
            published = _register(registry, incoming, parents, metrics or {}, by or Provenance())
        finally:
            for store, one in incoming:
                store.discard(one)
        if move:
            for store, source in sources:
                if not source.resolve().is_relative_to(store.directory.resolve()):
                    remove_source(source, store.kind)
    return Published(published.record, published.is_new, tuple(notes))


def _register(
    registry: Registry,
    incoming: list[tuple[Store, Incoming]],
    parents: tuple[str, ...] | None,
    metrics: Mapping[str, Any],
    by: Provenance,
) -> Published:
    """Check the fit of what came in, put it into place and write the record."""
    snapshot, checkpoint = (one.draft or store.path(one.version) for store, one in incoming)
    fitting = check_fit(snapshot, checkpoint)
    pairing = fitting.pairing
    with registry.writing():
        for store, one in incoming:
            store.settle(one)
        is_new = not _is_registered(registry, pairing.version)
        champion = registry.aliases().champion
        record = GenerationRecord(
            pairing.version,
            pairing,
            time.time(),
            ((champion,) if champion else ()) if parents is None else parents,
            fitting.lineage,
            {**fitting.metrics, **metrics},
            by.named(),
            by.why,
        )
        record = write_record(registry.generations, record)
        # The record says it too, so a disk that takes no line more undoes nothing; the next
        # publication of the same pair makes up for a line that is missing.
        with suppress(OSError):
            if is_new or not registry.log.tells_of("publish", record.version):
                registry.log.append(
                    "publish",
                    who=record.who,
                    why=record.why,
                    time=record.created,
                    generation=record.version,
                )
    return Published(record, is_new)


def _is_registered(registry: Registry, version: str) -> bool:
    """Whether a generation is there; a damaged record is taken away, to be written again."""
    path = registry.generations / version
    if not path.exists():
        return False
    try:
        registry.record(version)
    except ArtifactError:
        remove_durably(path, registry.work)
        return False
    return True


def _source(store: Store, given: Path | str) -> Path:
    """A directory, or the place of a stored version."""
    path = Path(given)
    if not path.exists() and store.path(str(given)).is_dir():
        return store.path(str(given))
    return path


def _notes_of_changes(snapshot: Path | str, *, move: bool) -> list[str]:
    """Changes beside a snapshot do not come along. Raises ArtifactError when they would be lost."""
    path = Path(snapshot)
    live = changes_beside(path) if path.is_dir() else None
    if live is None:
        return []
    if move:
        raise ArtifactError(
            f"{live} holds changes of {path}, which would lose its snapshot; merge them with "
            f"`onesearch index merge` first, or publish without moving"
        )
    return [
        f"changes in {live} do not come along; `onesearch index merge {path} TARGET` writes a "
        "snapshot that has them"
    ]
