"""The catalogue that changes while it is searched.

Readers take `view` once and use it for a whole search; nothing ever makes them wait. Writers hand
in changes from any thread. All that wait are taken together: planned, new items encoded, one record
appended to the log and synced, the next view published; then each caller hears what became of its
changes. So whatever was acknowledged is on disk and in the next search.

There are two forms. `WritingCatalogue` does it all in a thread of this process: for commands and
tools. `FollowingCatalogue` has a process of its own do it, and only lays down what that one worked
out: for servers, whose searches are to notice nothing of the changes.

A merge runs in a process of its own and leads to a snapshot; then the log's changes since are
replayed on it and the catalogue goes on from there. Views of the old base stay usable.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from index.errors import ConfigError, OnesearchError
from index.live.changes import Applied, Change
from index.live.directory import CatalogueHeld, live_directory, read_view
from index.live.view import CatalogueView
from index.snapshot import Snapshot

if TYPE_CHECKING:
    from index.live.nursery import Nursery

__all__ = [
    "CatalogueBusy",
    "CatalogueClosed",
    "CatalogueHeld",
    "CatalogueUnsure",
    "LiveCatalogue",
    "LiveSettings",
    "LiveStatus",
    "live_directory",
    "read_view",
]


class CatalogueBusy(OnesearchError):
    """More changes wait than the catalogue takes; try again later."""


class CatalogueClosed(OnesearchError):
    """The catalogue takes no changes: it was closed, or its disk refused."""


class CatalogueUnsure(CatalogueClosed):
    """Whether changes were made is not known; they can be sent again."""


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
    publish_interval_s: float = 0.004
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


class LiveCatalogue(ABC):
    """See the module's head. Use `open`; close it in the end."""

    def __init__(self, directory: Path, settings: LiveSettings) -> None:
        self.directory = directory
        self.settings = settings
        self.note = ""
        """What opening mended, for a person; "" for nothing."""
        self.on_merge: Callable[[CatalogueView], None] | None = None
        """Called with the first view of a new base, in a thread of its own, just before searches
        get it: whoever keeps things by base trie prepares them here."""

    @staticmethod
    def open(
        snapshot: Snapshot | Path,
        directory: Path | None = None,
        settings: LiveSettings | None = None,
        *,
        verify: bool = True,
        apart: bool = False,
        nursery: Nursery | None = None,
    ) -> LiveCatalogue:
        """The catalogue of a snapshot with the changes that `directory` (SNAPSHOT.live) holds;
        with `apart` another process writes them, which comes from `nursery` if one is given.

        Raises ArtifactError when something is damaged, belongs to another snapshot, or when another
        process has the directory open for changes.
        """
        from index.live.following import FollowingCatalogue
        from index.live.writing import WritingCatalogue

        path = snapshot.path if isinstance(snapshot, Snapshot) else Path(snapshot)
        directory = live_directory(path) if directory is None else Path(directory)
        settings = settings or LiveSettings()
        if not apart:
            return WritingCatalogue.opened(snapshot, directory, settings, verify=verify)
        return FollowingCatalogue.opened(
            snapshot, directory, settings, verify=verify, nursery=nursery
        )

    @property
    def nursery(self) -> Nursery | None:
        """Where its writer came from, and others may come from; None where there is no writer
        apart."""
        return None

    @property
    @abstractmethod
    def view(self) -> CatalogueView:
        """The catalogue as it is now."""

    def apply(self, changes: Sequence[Change]) -> Applied:
        """Make changes; on return they are on disk and in `view`. Callable from any thread.

        Raises CatalogueBusy when too many wait, CatalogueClosed when none are taken any more,
        CatalogueUnsure when what became of these is not known.
        """
        return self.submit(changes).result()

    @abstractmethod
    def submit(self, changes: Sequence[Change]) -> Future[Applied]:
        """Like `apply`, without waiting for the result. Cancelling it drops the changes where they
        were not taken up yet."""

    @abstractmethod
    def merge(self) -> CatalogueView:
        """Write the catalogue as it is to a snapshot and go on from there; returns the new view.

        Searches and changes go on meanwhile. Raises ArtifactError when it failed; the catalogue
        then stays as it was.
        """

    @abstractmethod
    def export(self, path: Path) -> None:
        """Write the catalogue as it is to a snapshot at `path`, of no further concern here.

        Raises ArtifactError when `path` exists or the writing failed.
        """

    @abstractmethod
    def status(self) -> LiveStatus:
        """Counters, for metrics."""

    @abstractmethod
    def close(self) -> None:
        """Take no more changes, finish those that wait, stop a merge, release the directory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()
