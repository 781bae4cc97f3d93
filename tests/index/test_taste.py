"""Taste features by hand, against brute force, and at the edges."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.dataset import ITEMS
from index.errors import ConfigError
from index.taste import TASTE_FEATURES, TasteTable, TasteWeights


class Vectors:
    """Unit vectors by row."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors.astype(np.float32)

    def vectors(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self._vectors[rows]


def item(number: int, brand: str | None, colors: list[str], path: list[str], price: float | None):
    return {
        "item_id": str(number),
        "title": f"item {number}",
        "brand": brand,
        "color": colors,
        "category": path,
        "price": price,
    }


# Top category home: Nord 3 of 4 items, Acme 1 of 4; red 2 of 4. Top category work: Acme alone.
ROWS = [
    item(0, "Nord", ["red"], ["home", "desks"], 10.0),
    item(1, "Nord", ["red", "blue"], ["home", "desks"], 20.0),
    item(2, "Nord", [], ["home", "lamps"], None),
    item(3, "Acme", ["blue"], ["home", "desks"], 30.0),
    item(4, "Acme", [], ["work", "saws"], 5.0),
]
TABLE = TasteTable.of(pa.Table.from_pylist(ROWS, schema=ITEMS))
ANGLES = np.array([0.0, 0.3, 1.2, 2.0, 3.0])
DENSE = Vectors(np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1))
ALL = np.arange(5)


def column(table: np.ndarray[Any, Any], name: str) -> list[float]:
    return table[:, TASTE_FEATURES.index(name)].tolist()


def test_lift_by_hand() -> None:
    found = TABLE.features([0, 3], ALL, DENSE)
    # Two choices in home: Nord chosen 1, expected 2 · 3/4; Acme chosen 1, expected 2 · 1/4.
    nord, acme = log(2 / 2.5), log(2 / 1.5)
    assert column(found, "brand") == pytest.approx([nord, nord, nord, acme, acme])
    # Red chosen 1, expected 2 · 2/4; blue the same. The mean of an item's colours; none: 0.
    assert column(found, "color") == pytest.approx([log(2 / 2)] * 5)
    one = TABLE.features([0], ALL, DENSE)
    red, blue = log(2 / 1.5), log(1 / 1.5)
    assert column(one, "color") == pytest.approx([red, (red + blue) / 2, 0, blue, 0])
    assert column(one, "material") == [0.0] * 5


def test_category_price_similarity_and_seen_by_hand() -> None:
    found = TABLE.features([3, 4, 3], ALL, DENSE)
    desks, saws = log(3), log(2)
    assert column(found, "category") == pytest.approx([desks, desks, 0, desks, saws])
    # Levels in desks: −1/3, 0, 1/3; alone or unknown: 0. Mean with two neutral choices besides.
    liking = (2 / 3) / 5
    assert column(found, "price") == pytest.approx([-liking / 3, 0, 0, liking / 3, 0])
    nearest = [max(np.cos(a - 2.0), np.cos(a - 3.0)) for a in ANGLES]
    assert column(found, "similar") == pytest.approx(nearest, abs=1e-6)
    assert column(found, "seen") == [0, 0, 0, 1, 1]


def test_no_history_is_no_taste() -> None:
    assert not TABLE.features([], ALL, DENSE).any()
    assert TABLE.features([1], ALL[:0], DENSE).shape == (0, len(TASTE_FEATURES))


def test_rows_that_joined_later_have_vectors_only() -> None:
    angles = np.append(ANGLES, 0.1)
    dense = Vectors(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    found = TABLE.features([5, 0], np.array([5, 0]), dense)
    assert column(found, "seen") == [1, 1]
    assert column(found, "brand")[0] == 0
    assert found[1, :5] == pytest.approx(TABLE.features([0], ALL[:1], DENSE)[0, :5])
    assert not TABLE.features([5], ALL, dense)[:, :5].any()


def test_columns_may_be_absent() -> None:
    bare = TasteTable.of(pa.table({"item_id": ["a", "b"], "title": ["x", "y"]}))
    found = bare.features([0], np.array([0, 1]), DENSE)
    assert column(found, "brand") == column(found, "price") == [0, 0]


def test_weights_travel_as_json() -> None:
    weights = TasteWeights(brand=1.5, seen=-2.0)
    assert TasteWeights.from_json(weights.to_json()) == weights
    assert TasteWeights.from_vector(weights.vector()) == weights
    with pytest.raises(ConfigError, match="taste needs a number"):
        TasteWeights.from_json({"brand": 1})
