"""Opening catalogues: to change them, and to read them beside the process that does."""

from __future__ import annotations

import time
from pathlib import Path

from index.errors import ArtifactError
from index.live.catalogue import (
    CatalogueHeld,
    LiveCatalogue,
    LiveSettings,
    live_directory,
    read_view,
)
from index.live.nursery import Nursery
from index.live.view import CatalogueView

READ_AGAIN_S = (0.05, 0.2, 0.5)
"""Waits before a live directory that looks damaged is believed to be."""


def open_catalogue(
    snapshot: Path,
    directory: Path | None = None,
    settings: LiveSettings | None = None,
    *,
    verify: bool = True,
    apart: bool = True,
    nursery: Nursery | None = None,
    if_held: str,
) -> LiveCatalogue:
    """A snapshot's catalogue for changes; `directory` is SNAPSHOT.live unless given. With `apart`
    a process of its own writes them, so that searches in this one keep their pace; it comes from
    `nursery` if one is given.

    Raises ArtifactError; when another process has it, the message ends with `if_held`.
    """
    try:
        return LiveCatalogue.open(
            snapshot, directory, settings, verify=verify, apart=apart, nursery=nursery
        )
    except CatalogueHeld as error:
        raise CatalogueHeld(f"{error}. {if_held}") from None


def settled_view(snapshot: Path, directory: Path | None, *, verify: bool = True) -> CatalogueView:
    """A snapshot with its changes as they are now, whether or not a process is writing more.

    What is read in the middle of an append or of a merge's end is read again. Raises ArtifactError.
    """
    for wait_s in READ_AGAIN_S:
        try:
            return read_view(snapshot, directory, verify=verify)
        except ArtifactError:
            if not (directory or live_directory(snapshot)).exists():
                raise
            time.sleep(wait_s)
    return read_view(snapshot, directory, verify=verify)
