"""Hypotheses and retrieved items → the ranked hits of an answer, checked with the catalogue.

candidates → rescoring → hits
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from index.live.view import CatalogueView
from models.personal import bonus_of
from models.ranking import rank_candidates
from server.candidates import chosen_candidates
from server.engine_door import Found
from server.generation import Generation
from server.hits import hits_of
from server.legality import illegalities
from server.preparation import Prepared
from server.schemas import Hit, SearchRequest


@dataclass(frozen=True, slots=True)
class Ranking:
    """`illegal`: for each hit what is wrong with it, "" for nothing. `parts`: seconds of the parts
    of ranking, in turn."""

    hits: Sequence[Hit] = ()
    n_candidates: int = 0
    illegal: Sequence[str] = ()
    parts: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def legal_hits(self) -> list[Hit]:
        """What may be shown: all of them, if all is well."""
        return [hit for hit, wrong in zip(self.hits, self.illegal, strict=True) if not wrong]


def ranking_of(
    generation: Generation,
    view: CatalogueView,
    request: SearchRequest,
    prepared: Prepared,
    found: Found,
    retrieved: int,
) -> Ranking:
    """The first `limit` items of a search. `retrieved`: candidates of each of dense and lexical
    search."""
    began = time.perf_counter()
    query, embedding = prepared.query, prepared.embedding
    mask = None if prepared.allowed is None else prepared.allowed.mask
    beam = found.hypotheses
    chosen = chosen_candidates(view, query, embedding, beam, mask, retrieved)
    rescoring = time.perf_counter()
    weights, taste = bonus_of(
        generation.personal, generation.weights, prepared.history, chosen.rows, view
    )
    ranked = rank_candidates(
        view, weights, query, embedding, chosen, taste, explained=request.explain
    )
    writing = time.perf_counter()
    hits = hits_of(view, weights, ranked, beam, request.limit, explain=request.explain)
    illegal = illegalities(view, hits, beam, ranked.hypothesis[: len(hits)])
    parts = {
        "candidates": rescoring - began,
        "rescoring": writing - rescoring,
        "hits": time.perf_counter() - writing,
    }
    return Ranking(hits, len(ranked.rows), illegal, parts)
