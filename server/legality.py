"""Whether a hit is one that may be found: an item of the catalogue under its own SID."""

from __future__ import annotations

import math

import numpy as np

from index.live.view import CatalogueView
from server.schemas import Hit


def illegality(view: CatalogueView, hit: Hit) -> str:
    """What is wrong with a hit of this view; "" for nothing."""
    row = view.items.row_of(hit.item_id)
    sid = None
    if row is not None:
        leaf = view.postings.leaf_of_row[np.array([row])]
        sid = view.layout.format(view.trie.codes_of_leaves(leaf)[0])
    if sid == hit.sid and math.isfinite(hit.score):
        return ""
    return (
        f"item {hit.item_id} came under {hit.sid} with score {hit.score}, in the catalogue it is "
        f"{sid or 'not there'}"
    )
