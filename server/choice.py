"""What `onesearch serve` serves: directories that were given, a registry's champion, or the pair
that the champion file names.

A registry comes before the champion file, unless only the latter was named in the settings. One
without a champion is passed over for a champion file that is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from index.errors import ArtifactError
from models.registry.leases import Lease
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


def settings_for(settings: Settings, snapshot_version: str) -> Settings:
    """The settings to open a registered generation with: its files are verified already, and the
    live directory, where one is named, holds one of each snapshot."""
    live: Path | None = settings.live_directory
    if live is not None:
        live = live / snapshot_version
    return settings.model_copy(update={"live_directory": live, "verify": False})
