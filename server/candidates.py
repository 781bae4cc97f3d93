"""Which items are ranked: those of the beam's SIDs and, beside or instead of them, retrieved ones.

Filters hold exactly: an item of an allowed SID that does not pass the filter itself is left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Hypotheses
from index.catalogue import Catalogue
from models.ranking import Candidates, candidates_of


def chosen_candidates(
    catalogue: Catalogue,
    query: str,
    embedding: NDArray[np.float32],
    beam: Hypotheses | None,
    mask: NDArray[np.bool_] | None,
    retrieved: int,
) -> Candidates:
    """The beam's items, then up to `retrieved` of each of dense and lexical search.

    `embedding` float32 (d,); `beam` None when the engine was not heard; `mask` bool (n_items,).
    Items outside the beam have SID score NaN and hypothesis −1; no row is given twice.
    """
    if beam is None:
        nothing = np.empty(0, np.int64)
        inside = Candidates(nothing, np.empty(0, np.float32), nothing)
    else:
        inside = candidates_of(catalogue, beam.leaves, beam.scores, mask)
    if not retrieved:
        return inside
    dense = catalogue.dense.search(embedding[None], retrieved, mask)[0][0]
    lexical = catalogue.lexical.search(query, retrieved, mask)[0]
    outside = np.setdiff1d(np.concatenate([dense, lexical]), inside.rows)
    return Candidates(
        np.concatenate([inside.rows, outside]),
        np.concatenate([inside.sid_scores, np.full(len(outside), np.nan, np.float32)]),
        np.concatenate([inside.hypothesis, np.full(len(outside), -1)]),
    )
