"""Which items are ranked: those of the beam's SIDs and, beside or instead, retrieved ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Hypotheses
from index.catalogue import Catalogue
from models.ranking import Candidates, candidates_of, with_retrieved


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
    return with_retrieved(catalogue, query, embedding, inside, mask, retrieved)
