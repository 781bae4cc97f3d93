"""Hypotheses → ranked items: the served ranking, used by gateway and evaluation alike.

hypotheses → postings → items under the filter, and those that dense and lexical search find beside
them → features → weighted score → order. The arithmetic is `index.rescoring`; here it is only put
together. Items that the query names (`index.identifiers`) go before all others. Filters hold
exactly: an item of an allowed SID that does not pass the filter itself is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Hypotheses
from index.catalogue import Catalogue
from index.identifiers import named_rows
from index.rescoring import RescoringWeights, features, score

RETRIEVED = 200
"""Items of dense search and of BM25 each that are ranked beside the beam's."""


class Ranked(NamedTuple):
    """Candidates best first: rows int64 (n,), score float32 (n,), features float32 (n, F), and
    `hypothesis` int64 (n,), which hypothesis each row came from (−1: none)."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    features: NDArray[np.float32]
    hypothesis: NDArray[np.int64]


class Candidates(NamedTuple):
    """Item rows int64 (n,), SID score of each, float32 (n,), and its hypothesis int64 (n,)."""

    rows: NDArray[np.int64]
    sid_scores: NDArray[np.float32]
    hypothesis: NDArray[np.int64]


def candidates_of(
    catalogue: Catalogue,
    leaves: NDArray[np.int64],
    leaf_scores: NDArray[np.float32],
    item_mask: NDArray[np.bool_] | None = None,
) -> Candidates:
    """The items of leaves (best first), those outside `item_mask` left out."""
    rows, place = catalogue.postings.rows_of(leaves)
    rows, place = rows.astype(np.int64), place.astype(np.int64)
    if item_mask is not None:
        kept = item_mask[rows]
        rows, place = rows[kept], place[kept]
    return Candidates(rows, leaf_scores[place], place)


def with_retrieved(
    catalogue: Catalogue,
    query: str,
    embedding: NDArray[np.float32],
    inside: Candidates,
    mask: NDArray[np.bool_] | None,
    retrieved: int,
) -> Candidates:
    """The items `inside` (of SIDs), then up to `retrieved` of each of dense and lexical search, and
    those that the query names.

    `embedding` float32 (d,); `mask` bool (n_items,). Items from outside have SID score NaN and
    hypothesis −1; no row is given twice.
    """
    if not retrieved:
        return inside
    dense = catalogue.dense.search(embedding[None], retrieved, mask)[0][0]
    lexical = catalogue.lexical.search(query, retrieved, mask)[0]
    named = named_rows(catalogue, query)
    if mask is not None:
        named = named[mask[named]]
    outside = np.setdiff1d(np.concatenate([dense, lexical, named]), inside.rows)
    return Candidates(
        np.concatenate([inside.rows, outside]),
        np.concatenate([inside.sid_scores, np.full(len(outside), np.nan, np.float32)]),
        np.concatenate([inside.hypothesis, np.full(len(outside), -1)]),
    )


def rank_candidates(
    catalogue: Catalogue,
    weights: RescoringWeights,
    query_text: str,
    query_embedding: NDArray[np.float32],
    candidates: Candidates,
    taste: NDArray[np.float32] | None = None,
    *,
    explained: bool = True,
) -> Ranked:
    """Candidates in served order: those that the query names, then the others, by score.

    `taste` float32 (n,): what the user's history adds to each. The score of a named item is raised
    by what lifts the worst of them above the best of all. Not `explained`: a costly feature whose
    weight is 0 may be left at 0.
    """
    table = features(
        query_embedding,
        query_text,
        candidates.rows,
        candidates.sid_scores,
        catalogue,
        with_words=explained or weights.words != 0,
    )
    total = score(table, weights)
    if taste is not None:
        total = total + taste
    named = np.isin(candidates.rows, named_rows(catalogue, query_text))
    if named.any():
        total = total + np.where(named, np.ptp(total) + 1, 0).astype(np.float32)
    order = np.lexsort((candidates.rows, -total))
    return Ranked(
        candidates.rows[order],
        total[order],
        table[order],
        candidates.hypothesis[order],
    )


def rank_hypotheses(
    catalogue: Catalogue,
    weights: RescoringWeights,
    query_text: str,
    query_embedding: NDArray[np.float32],
    hypotheses: Hypotheses,
    item_mask: NDArray[np.bool_] | None = None,
) -> Ranked:
    """The served ranking of one query's hypotheses."""
    found = candidates_of(catalogue, hypotheses.leaves, hypotheses.scores, item_mask)
    return rank_candidates(catalogue, weights, query_text, query_embedding, found)
