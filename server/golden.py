"""Golden queries: what a generation has to answer before it is served.

They are lines of a file, or titles of items spread over the catalogue. Each is searched on the
loaded generation as any search is. Everything found has to be legal: an item of its catalogue under
its own SID, with a finite score, from the engine. And a share of the queries, the floor, has to
find something.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index.errors import ArtifactError, ConfigError
from index.live.view import CatalogueView
from server.generation import Generation
from server.legality import illegality
from server.pipeline import Pipeline
from server.schemas import Hit, SearchRequest

SAMPLED_TITLES = 10
"""One of them may find nothing under the usual floor."""
MAX_QUERIES = 200
HITS = 10
TIMEOUT_S = 10.0
"""Of one query; it waits in the engine's queue behind searches."""
TRIES = 3
GIVE_WAY = 2.0
"""Where searches are in the engine, a pause may be so many times as long as a query took,"""
CALM_S = 1.0
"""or its share of this, if that is longer: the sampled ones meet few searches, and end soon."""
AT_ONCE = 8
"""An engine that answers several at a time is no faster with more."""


@dataclass(frozen=True, slots=True)
class Golden:
    """What came of the queries. `itself`: titles that found their own item; None for queries of a
    file. `seconds`: all together."""

    queries: int
    answered: int
    itself: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class GoldenQuery:
    """`item_id`: the item whose title it is."""

    text: str
    item_id: str | None = None


def read_queries(path: Path) -> list[GoldenQuery]:
    """The lines of a file, empty ones left out; the first MAX_QUERIES of them.

    Raises ConfigError when there are none.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"golden_queries {path} cannot be read: {error}") from None
    texts = (line.replace("\0", "").strip() for line in lines)
    queries = [GoldenQuery(text) for text in texts if text]
    if not queries:
        raise ConfigError(f"golden_queries {path} holds no query; write one a line")
    return queries[:MAX_QUERIES]


def sampled_titles(view: CatalogueView, count: int = SAMPLED_TITLES) -> list[GoldenQuery]:
    """Titles of items spread evenly over a catalogue; fewer where items were removed."""
    if not len(view.items):
        return []
    rows = np.unique(np.linspace(0, len(view.items) - 1, count).astype(np.int64))
    found: list[GoldenQuery] = []
    for item in view.items.get_many(rows):
        item_id, title = str(item["item_id"]), str(item["title"])
        if view.items.row_of(item_id) is not None and title.strip():
            found.append(GoldenQuery(title, item_id))
    return found


async def run_golden(
    pipeline: Pipeline,
    generation: Generation,
    queries: list[GoldenQuery],
    floor: float,
    *,
    beside: bool = True,
) -> Golden:
    """Search them all. `beside`: they come on top of searches that are being served, so one after
    the other, each when nobody else is in the engine, or after a pause of GIVE_WAY times what the
    last one took, or of its share of CALM_S; else searches wait for them, so AT_ONCE together.

    Raises ArtifactError that names the query for an answer that is not legal, and when fewer than
    `floor` of the queries find anything.
    """
    started, answered, itself, took = time.monotonic(), 0, 0, 0.0
    at_once = 1 if beside else AT_ONCE
    for first in range(0, len(queries), at_once):
        if beside:
            await pipeline.calm(max(GIVE_WAY * took, CALM_S / len(queries)))
        some, asked = queries[first : first + at_once], time.monotonic()
        found = await _found(pipeline, generation, some)
        took = time.monotonic() - asked
        for query, hits in zip(some, found, strict=True):
            for hit in hits:
                if wrong := illegality(generation.view, hit):
                    raise ArtifactError(f"golden query {query.text!r}: {wrong}")
            answered += bool(hits)
            itself += any(hit.item_id == query.item_id for hit in hits)
    if answered < floor * len(queries):
        raise ArtifactError(
            f"golden queries: {answered} of {len(queries)} found something, the floor is {floor:g}"
        )
    titles = all(query.item_id is not None for query in queries)
    seconds = time.monotonic() - started
    return Golden(len(queries), answered, itself if titles else None, seconds)


async def _found(
    pipeline: Pipeline, generation: Generation, queries: Sequence[GoldenQuery]
) -> list[list[Hit]]:
    """Of queries that are asked together; all have ended when one's error is raised."""
    searches = (_search(pipeline, generation, query) for query in queries)
    found: list[list[Hit]] = []
    for one in await asyncio.gather(*searches, return_exceptions=True):
        if isinstance(one, BaseException):
            raise one
        found.append(one)
    return found


async def _search(pipeline: Pipeline, generation: Generation, query: GoldenQuery) -> list[Hit]:
    """Hits that the engine gave; a busy one is asked again."""
    request = SearchRequest(query=query.text, limit=HITS, explain=True)
    reason = ""
    for _ in range(TRIES):
        deadline = time.monotonic() + TIMEOUT_S
        hits, degraded = await pipeline.try_out(generation, request, deadline)
        if not degraded:
            return hits
        reason = degraded[0]
    raise ArtifactError(f"golden query {query.text!r}: no answer of the engine ({reason})")
