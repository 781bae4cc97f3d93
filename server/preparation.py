"""What engine and ranking need of a request: query, embedding, prompt, filter.

query → embedding → user context → prompt

Embeddings are kept by snapshot and query: encoder and attributes are the snapshot's, changes of the
catalogue leave them alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Prompt
from index.items import ItemFilter
from index.live.filters import Allowed
from index.live.view import CatalogueView
from index.text import normalise
from server.cache import LruCache
from server.generation import Generation
from server.metrics import Metrics
from server.schemas import SearchRequest
from server.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """`embedding` float32 (d,). `beam_width` is 0 where the filters leave nothing. `history`: the
    rows of known history items, oldest first, int64 (n,). `embedding_s`: seconds that the embedding
    took."""

    query: str
    embedding: NDArray[np.float32]
    prompt: Prompt
    allowed: Allowed | None
    beam_width: int
    unknown_history: int
    history: NDArray[np.int64]
    embedding_s: float


class Preparation:
    """Prepares requests; safe to use from several threads."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._beam_width = settings.beam_width
        self._metrics = metrics
        self._embeddings: LruCache[tuple[str, str], NDArray[np.float32]] = LruCache(
            settings.query_cache_entries
        )

    def prepare(
        self,
        generation: Generation,
        view: CatalogueView,
        request: SearchRequest,
        history: Sequence[str],
        keywords: Sequence[str],
    ) -> Prepared:
        """For one of a generation's views. `history`: item ids; `keywords`: for the prompt."""
        query = normalise(request.query)
        began = time.perf_counter()
        embedding = self._embedding(generation, view, query)
        embedding_s = time.perf_counter() - began
        rows = view.items.rows_of(history)
        known = rows[rows >= 0]
        sids = view.trie.codes_of_leaves(view.postings.leaf_of_row[known])
        allowed = view.filter(item_filter(request))
        n_legal = view.trie.n_leaves if allowed is None else allowed.trie.n_leaves
        return Prepared(
            query,
            embedding,
            generation.prompts.prompt(query, embedding, list(sids), keywords),
            allowed,
            min(request.beam_width or self._beam_width, n_legal),
            len(rows) - len(known),
            known,
            embedding_s,
        )

    def _embedding(
        self, generation: Generation, view: CatalogueView, query: str
    ) -> NDArray[np.float32]:
        key = (generation.snapshot_version, query)
        embedding = self._embeddings.get(key)
        self._metrics.cache.labels("query", "miss" if embedding is None else "hit").inc()
        if embedding is None:
            # A text without one known feature has no direction; zero is similar to nothing.
            embedding = np.nan_to_num(view.embed_queries([query])[0])
            self._embeddings.put(key, embedding)
        return embedding


def item_filter(request: SearchRequest) -> ItemFilter:
    """The request's filters as the index takes them."""
    filters = request.filters
    if filters is None:
        return ItemFilter()
    return ItemFilter(
        category=tuple(filters.category),
        brand=tuple(filters.brand),
        color=tuple(filters.color),
        material=tuple(filters.material),
        price_min=filters.price_min,
        price_max=filters.price_max,
        in_stock=filters.in_stock,
    )


def notes(
    request: SearchRequest, view: CatalogueView, prepared: Prepared, n_hits: int
) -> list[str]:
    """For a person: why a list is short, what was ignored."""
    told: list[str] = []
    # Neither encoder nor lexical index know anything of the query.
    if not prepared.embedding.any() and view.lexical.upper_bound(prepared.query) <= 0:
        told.append("nothing in the query is known to this catalogue; the hits are only guesses")
    if prepared.unknown_history:
        told.append(f"history items not in the catalogue: {prepared.unknown_history}")
    if n_hits == request.limit:
        return told
    # Without conditions there still is a filter when SIDs have lost all of their items.
    allowed = None if item_filter(request).is_empty else prepared.allowed
    if not prepared.beam_width:
        told.append("the catalogue is empty" if allowed is None else "no item passes the filters")
    elif allowed is not None and allowed.n_items == n_hits:
        told.append(f"only {n_hits} {'item passes' if n_hits == 1 else 'items pass'} the filters")
    else:
        were = "item was" if n_hits == 1 else "items were"
        told.append(f"only {n_hits} {were} found; a larger beam_width finds more")
    return told
