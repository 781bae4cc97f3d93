"""Compaction: the champion's catalogue with all its changes becomes a snapshot of the registry.

    merge → publish with the champion's checkpoint → name it in the champion's place

The generation is of the same checkpoint, encoder and codec, and holds what the catalogue held at
one change; later changes go on in the same log, which is the catalogue's whatever snapshots it led
to. So nothing is copied between logs, and a process killed at any step leaves the old champion or
the new one, with the same items either way.

`previous` stays what it was: a rollback undoes a promotion, which a compaction is not. While a
challenger is tried against the champion (a canary) the champion stays as it is.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from index.errors import ArtifactError
from index.live.catalogue import LiveCatalogue
from index.live.merge import write_merged
from index.live.view import CatalogueView
from models.registry.aliases import Aliases
from models.registry.durable import work_path
from models.registry.promotion import change_aliases, check_expected
from models.registry.publication import publish
from models.registry.record import GenerationRecord
from models.registry.registry import Provenance, Registry

EVENT = "compact"


class CompactionBarred(ArtifactError):
    """Not now: something else is going on with the champion."""


@dataclass(frozen=True, slots=True)
class Due:
    """When a compaction is worth its disk space: after this many changes, or when the champion was
    published this long ago and there are any. None: never for that reason."""

    changes: int | None = None
    age_s: float | None = None

    def holds(self, champion: GenerationRecord, sequence: int, now: float) -> bool:
        """`sequence`: the catalogue's last change. `now`: Unix time."""
        pending = sequence - champion.catalogue_sequence
        many = self.changes is not None and pending >= self.changes
        old = self.age_s is not None and now - champion.created >= self.age_s
        return pending > 0 and (many or old)


def compact(
    registry: Registry, champion: GenerationRecord, catalogue: LiveCatalogue, by: Provenance
) -> GenerationRecord:
    """Compact a catalogue that is open for changes, which go on meanwhile: it is merged, so it goes
    on from the new snapshot itself. Returns the new champion; `champion` where nothing changed.

    Raises ArtifactError, CompactionBarred, AliasMoved when somebody else changed the champion.
    """
    check_free(registry, champion)
    base = catalogue.merge().base
    if int(base.manifest.get("live", {}).get("sequence", 0)) <= champion.catalogue_sequence:
        return champion
    return _take_place(registry, champion, base.path, by)


def compact_view(
    registry: Registry, champion: GenerationRecord, view: CatalogueView, by: Provenance
) -> GenerationRecord:
    """The same of a catalogue that another process has open, as it was read. Errors as of
    `compact`."""
    check_free(registry, champion)
    if view.sequence <= champion.catalogue_sequence:
        return champion
    path = work_path(registry.work, "compaction")
    try:
        with registry.told():
            write_merged(view, path)
        return _take_place(registry, champion, path, by)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def check_free(registry: Registry, champion: GenerationRecord) -> None:
    """Raises AliasMoved when another generation is champion, CompactionBarred during a canary."""
    _check(registry.aliases(), champion.version)


def _take_place(
    registry: Registry, champion: GenerationRecord, snapshot: Path, by: Provenance
) -> GenerationRecord:
    """Publish a snapshot with the champion's checkpoint, and name it champion."""
    published = publish(
        registry,
        snapshot,
        champion.pairing.checkpoint,
        parents=(champion.version,),
        metrics=champion.metrics,
        by=by,
    ).record
    if published.catalogue_origin != champion.catalogue_origin:
        raise ArtifactError(
            f"{snapshot} is of catalogue {published.catalogue_origin}, the champion's is "
            f"{champion.catalogue_origin}; compact the champion's own"
        )

    def succeed(state: Aliases) -> Aliases:
        _check(state, champion.version)
        return replace(state, champion=published.version)

    change_aliases(registry, EVENT, succeed, published.version, by)
    return published


def _check(state: Aliases, champion: str) -> None:
    check_expected(state, champion)
    if state.canary is not None:
        raise CompactionBarred(
            f"challenger {state.challenger} is being tried against champion {champion}; compact "
            "when that has ended"
        )
