"""What the writer of a catalogue tells, so that others can follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from index.live.changes import Applied
from index.live.delta import Delta


class Listener(Protocol):
    """Hears all that leads from view to view, so that it can be followed elsewhere."""

    def made(self, tags: Sequence[int], answers: Sequence[Applied], delta: Delta | None) -> None:
        """Calls were answered; `delta` led to the next view. In the writer's thread."""
        ...

    def begun(self, base: Path) -> None:
        """A line of views begins at a snapshot; the one before goes on for now."""
        ...

    def replayed(self, delta: Delta) -> None:
        """The new line goes on."""
        ...

    def prepare(self) -> None:
        """Searches will get the new line's views soon. May take its time; raises ArtifactError
        where they must not."""
        ...

    def moved(self) -> None:
        """Searches get the new line's views from here on."""
        ...

    def merging(self) -> None:
        """A merge began or ended."""
        ...
