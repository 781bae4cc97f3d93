"""What the routes need of a search, so that HTTP can be read and tested apart from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from decoding.engine import EngineStats
from index.live.catalogue import LiveStatus
from index.live.changes import Change
from server.schemas import Item, SearchRequest, SearchResponse


@dataclass(frozen=True, slots=True)
class Serving:
    """What is being served just now."""

    model_version: str
    index_version: str
    simulated: bool
    items: int


@dataclass(frozen=True, slots=True)
class CatalogueStatus:
    """A changing catalogue in numbers: counters since the start, sizes and seconds as they are.

    `filters`: how filters were answered since the last merge: hit, patch, miss.
    """

    live: LiveStatus
    filters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ChangeOutcome:
    """What became of changes. `rejected`: (position, why), in the order given.

    `sequence` numbers the catalogue's last change, `index_version` names the catalogue after it.
    """

    sequence: int
    applied: int
    rejected: tuple[tuple[int, str], ...]
    index_version: str


class Searcher(Protocol):
    """The search behind the gateway."""

    async def search(
        self, request: SearchRequest, request_id: str, deadline: float
    ) -> SearchResponse:
        """Answer one request by `deadline` (monotonic seconds), degraded if need be.

        Raises Problem, or an error of `decoding.errors`, where no answer can be given.
        """
        ...

    async def item(self, item_id: str) -> Item | None:
        """One item of the catalogue, or None."""
        ...

    async def change(self, changes: Sequence[Change]) -> ChangeOutcome:
        """Change the catalogue; when this returns, what was applied is on disk and is searched.

        Raises Problem where nothing can be written.
        """
        ...

    def serving(self) -> Serving | None:
        """None while nothing can be answered."""
        ...

    def catalogue_status(self) -> CatalogueStatus | None:
        """What the changes have made of the catalogue; None when it takes none."""
        ...

    def engine_stats(self) -> EngineStats:
        """What the engine counts, for the metrics."""
        ...

    async def close(self) -> None:
        """Let go of the engine and the threads."""
        ...
