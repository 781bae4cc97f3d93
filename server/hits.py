"""Ranked rows → the hits of an answer, and single items."""

from __future__ import annotations

from typing import Any

import numpy as np

from decoding.engine import Hypotheses
from index.catalogue import Catalogue
from index.rescoring import FEATURES, RescoringWeights
from models.ranking import Ranked
from server.schemas import Explanation, Features, Hit, Item

HIT_COLUMNS = ("item_id", "title", "brand", "category", "color", "price", "stock")
ITEM_COLUMNS = (
    *("item_id", "title", "description", "brand", "category", "color", "material", "audience"),
    *("function", "price", "stock", "popularity"),
)
_LISTS = ("category", "color", "material", "audience", "function")


def hits_of(
    catalogue: Catalogue,
    weights: RescoringWeights,
    ranked: Ranked,
    found: Hypotheses | None,
    limit: int,
    *,
    explain: bool,
) -> list[Hit]:
    """The wire form of the first `limit` ranked items; `found` None: the engine was not heard."""
    rows = ranked.rows[:limit]
    if not len(rows):
        return []
    items = catalogue.items.get_many(rows, HIT_COLUMNS)
    codes = catalogue.trie.codes_of_leaves(catalogue.postings.leaf_of_row[rows])
    hits: list[Hit] = []
    for position, item in enumerate(items):
        hits.append(
            Hit(
                **_fields(item, HIT_COLUMNS),
                sid=catalogue.layout.format(codes[position]),
                score=float(ranked.scores[position]),
                explain=_explanation(ranked, position, codes[position].tolist(), found, weights)
                if explain
                else None,
            )
        )
    return hits


def item_of(catalogue: Catalogue, item_id: str) -> Item | None:
    """One item with all of its fields, or None."""
    row = catalogue.items.row_of(item_id)
    if row is None:
        return None
    leaf = catalogue.postings.leaf_of_row[np.array([row])]
    item = catalogue.items.get(row)
    return Item(
        **_fields(item, ITEM_COLUMNS),
        attributes=item.get("attributes") or {},
        sid=catalogue.layout.format(catalogue.trie.codes_of_leaves(leaf)[0]),
        index_version=catalogue.version,
    )


def _fields(item: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The named columns; an absent or null list is an empty one."""
    return {name: (item.get(name) or []) if name in _LISTS else item.get(name) for name in names}


def _explanation(
    ranked: Ranked,
    position: int,
    codes: list[int],
    found: Hypotheses | None,
    weights: RescoringWeights,
) -> Explanation:
    parts: dict[str, float | None] = dict(
        zip(FEATURES, map(float, ranked.features[position]), strict=True)
    )
    own_weights = Features.model_validate({name: getattr(weights, name) for name in FEATURES})
    hypothesis = int(ranked.hypothesis[position])
    if found is None or hypothesis < 0:
        if found is None:
            parts = {**parts, "sid": None}
        return Explanation(
            source="retrieval",
            codes=codes,
            level_log_probabilities=None,
            branching=None,
            features=Features.model_validate(parts),
            weights=own_weights,
        )
    return Explanation(
        source="beam",
        codes=codes,
        level_log_probabilities=found.level_scores[hypothesis].tolist(),
        branching=found.branching[hypothesis].tolist(),
        features=Features.model_validate(parts),
        weights=own_weights,
    )
