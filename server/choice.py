"""What `onesearch serve` serves: directories that were given, a registry's champion, or the pair
that the champion file names.

A registry comes before the champion file, unless only the latter was named in the settings. One
without a champion is passed over for a champion file that is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from index.errors import ArtifactError
from index.live.catalogue import live_directory
from models.registry.leases import Lease
from models.registry.record import GenerationRecord
from models.registry.registry import Choice, Registry
from server.settings import Settings

PIN_REASON = "onesearch serve"


@dataclass(frozen=True, slots=True)
class Registered:
    """A registry's generation to be served. `lease`: None where the registry takes none, as on a
    disk that is only read; `unpinned` says why."""

    registry: Registry
    choice: Choice
    lease: Lease | None
    unpinned: str = ""


def choose_registered(settings: Settings) -> Registered | None:
    """The champion, verified and pinned, or `previous` where the champion is damaged; None where
    the settings lead to directories (`server.generation.chosen_paths`).

    Raises ConfigError, ArtifactError when neither can be served.
    """
    if (settings.snapshot, settings.checkpoint) != (None, None):
        return None
    registry = Registry(settings.registry)
    named = settings.model_fields_set
    if not registry.exists or ("champion" in named and "registry" not in named):
        return None
    if registry.aliases().champion is None and settings.champion.exists():
        return None
    choice = registry.choose(verify=settings.verify)
    try:
        lease = registry.pin(choice.record.version, PIN_REASON)
    except ArtifactError as error:
        return Registered(registry, choice, None, str(error))
    return Registered(registry, choice, lease)


def settings_for(settings: Settings, registry: Registry, record: GenerationRecord) -> Settings:
    """The settings to open a registered generation with: its files are verified already, and its
    catalogue's changes lie where those of the snapshot lie that the catalogue started from."""
    live = changes_of(registry, record, settings.live_directory)
    update = {"live_directory": live, "verify": False}
    return settings.model_copy(update=update)


def changes_of(registry: Registry, record: GenerationRecord, folder: Path | None) -> Path:
    """The live directory of a registered generation: one for all snapshots that a catalogue's
    changes led to, in `folder` if one is given, else beside the first of them."""
    origin = record.catalogue_origin
    if folder is not None:
        return folder / origin
    return live_directory(registry.snapshots.path(origin))
