"""Whether a hit is one that may be found: an item of the catalogue under its own SID."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Hypotheses
from index.live.view import CatalogueView
from server.schemas import Hit


def illegality(view: CatalogueView, hit: Hit) -> str:
    """What is wrong with a hit of this view; "" for nothing."""
    [wrong] = illegalities(view, [hit])
    return wrong


def illegalities(
    view: CatalogueView,
    hits: Sequence[Hit],
    found: Hypotheses | None = None,
    hypothesis: NDArray[np.int64] | None = None,
) -> list[str]:
    """For each hit what is wrong with it, "" for nothing. `hypothesis` int64 (n,): by which of
    `found` the engine came upon it, −1 for none; then its codes have to be the item's as well."""
    rows = view.items.rows_of([hit.item_id for hit in hits])
    leaves = view.postings.leaf_of_row[np.maximum(rows, 0)]
    codes = view.trie.codes_of_leaves(leaves)
    decoded = np.ones(len(hits), np.bool_)
    if found is not None and hypothesis is not None:
        decoded = (hypothesis < 0) | (found.codes[hypothesis] == codes).all(axis=1)
    wrong: list[str] = []
    for hit, row, own, same in zip(hits, rows.tolist(), codes.tolist(), decoded, strict=True):
        sid = view.layout.format(own) if row >= 0 else "not there"
        if sid == hit.sid and same and math.isfinite(hit.score):
            wrong.append("")
            continue
        told = "" if same else ", decoded as another"
        wrong.append(
            f"item {hit.item_id} came under {hit.sid}{told} with score {hit.score}, in the "
            f"catalogue it is {sid}"
        )
    return wrong
