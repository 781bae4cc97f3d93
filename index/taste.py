"""How well candidate items fit what a user chose before: features of (history, item).

With the history h_1 … h_n (item rows), an item i, and c(v) = number of history items with value v:

    brand, color, material   mean over the item's values v of  log (c(v) + 1) / (e(v) + 1),
                             e(v) = Σ_j P(v | top category of h_j): chosen more often than chance?
    category                 log(1 + number of history items in the item's leaf category)
    price                    level(i) · Σ_j level(h_j) / (n + 2), level ∈ [−½, ½] the price's rank
                             within the leaf category, 0 where unknown
    similar                  largest cosine of the item and a history item
    seen                     whether the item itself is in the history

Everything is 0 without a history, so a search of nobody in particular is not touched. Lift instead
of plain counts because a catalogue's common values are chosen often by everybody. The weights are
fitted on searches held out for validation (`models.training.personal_weights`), and the weighted
sum is added to the score of `index.rescoring`.
"""

# pyarrow has no types of its own.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.errors import ConfigError
from index.rescoring import RescoringWeights

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
VALUE_FIELDS = ("brand", "color", "material")
TASTE_FEATURES = (*VALUE_FIELDS, "category", "price", "similar", "seen")
SMOOTHING = 1.0
PRICE_PRIOR = 2.0
MAX_HISTORY = 200


class Vectors(Protocol):
    """What is needed of the dense index: unit vectors of rows, float32 (n, d)."""

    def vectors(self, rows: NDArray[np.integer[Any]]) -> FloatArray: ...


@dataclass(frozen=True, slots=True)
class TasteWeights:
    """One weight per feature of TASTE_FEATURES."""

    brand: float = 0.0
    color: float = 0.0
    material: float = 0.0
    category: float = 0.0
    price: float = 0.0
    similar: float = 0.0
    seen: float = 0.0

    def vector(self) -> FloatArray:
        """Weights in the order of TASTE_FEATURES, float32 (T,)."""
        return np.array([getattr(self, name) for name in TASTE_FEATURES], np.float32)

    @classmethod
    def from_vector(cls, vector: NDArray[np.floating[Any]]) -> TasteWeights:
        return cls(*(float(value) for value in vector))

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TasteWeights:
        """Raises ConfigError when a weight is missing or no number."""
        try:
            return cls(**{name: float(data[name]) for name in TASTE_FEATURES})
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"taste needs a number for each of {TASTE_FEATURES}") from error


@dataclass(frozen=True, slots=True)
class PersonalWeights:
    """What ranks the candidates of a user with a history: rescoring weights, and taste besides."""

    rescoring: RescoringWeights
    taste: TasteWeights

    def to_json(self) -> dict[str, Any]:
        return self.rescoring.to_json() | {"taste": self.taste.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PersonalWeights:
        """Raises ConfigError when a weight is missing or no number."""
        return cls(RescoringWeights.from_json(data), TasteWeights.from_json(data.get("taste", {})))


@dataclass(frozen=True, slots=True, eq=False)
class _Values:
    """The values of one field: those of row r are values[start[r]:start[r + 1]].

    `share` float32 (groups, V): P(value | an item's top category).
    """

    start: IntArray
    values: IntArray
    share: FloatArray

    def of(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """Values of rows laid end to end, and how many each row has."""
        counts = self.start[rows + 1] - self.start[rows]
        ends = np.cumsum(counts)
        places = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        return self.values[np.repeat(self.start[rows], counts) + places], counts

    def lift(self, history: IntArray, groups: IntArray, rows: IntArray) -> FloatArray:
        """Mean log lift of the rows' values, float32 (n,); 0 for rows without a value."""
        chosen = np.bincount(self.of(history)[0], minlength=self.share.shape[1])
        expected = np.zeros(self.share.shape[1], np.float32)
        for group, count in zip(*np.unique(groups, return_counts=True), strict=True):
            expected += count * self.share[group]
        lift = np.log((chosen + SMOOTHING) / (expected + SMOOTHING))
        values, counts = self.of(rows)
        place = np.repeat(np.arange(len(rows)), counts)
        total = np.bincount(place, weights=lift[values], minlength=len(rows))
        return (total / np.maximum(counts, 1)).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class TasteTable:
    """What the features need of a catalogue, as arrays by item row. Nothing in it changes."""

    group: IntArray
    leaf: IntArray
    level: FloatArray
    fields: dict[str, _Values]

    @classmethod
    def of(cls, items: pa.Table) -> TasteTable:
        """From an items table (schema `index.dataset.ITEMS`; optional columns may be absent)."""
        count = items.num_rows
        paths = _column(items, "category")
        group = _numbers([path[0] if path else "" for path in paths])
        leaf = _numbers([tuple(path or ()) for path in paths])
        prices = np.array([price or np.nan for price in _column(items, "price")], np.float64)
        fields = {name: _values(_column(items, name), group) for name in VALUE_FIELDS}
        return cls(group, leaf, _levels(prices.reshape(count), leaf), fields)

    def features(
        self, history: Sequence[int] | IntArray, rows: IntArray, dense: Vectors
    ) -> FloatArray:
        """Features of candidate rows (n,), float32 (n, T), columns as in TASTE_FEATURES.

        `history`: item rows, oldest first; the newest MAX_HISTORY count. Rows that the table does
        not know (they joined the catalogue later) have the features `similar` and `seen` only.
        """
        result = np.zeros((len(rows), len(TASTE_FEATURES)), np.float32)
        past = np.asarray(history, np.int64)[-MAX_HISTORY:]
        if len(past) == 0 or len(rows) == 0:
            return result
        result[:, -2] = (dense.vectors(rows) @ dense.vectors(past).T).max(axis=1)
        result[:, -1] = np.isin(rows, past)
        inside = np.flatnonzero(rows < len(self.leaf))
        known, past = rows[inside], past[past < len(self.leaf)]
        if len(past) == 0:
            return result
        for column, name in enumerate(VALUE_FIELDS):
            result[inside, column] = self.fields[name].lift(past, self.group[past], known)
        leaves, counts = np.unique(self.leaf[past], return_counts=True)
        place = np.minimum(np.searchsorted(leaves, self.leaf[known]), len(leaves) - 1)
        same = np.where(leaves[place] == self.leaf[known], counts[place], 0)
        result[inside, len(VALUE_FIELDS)] = np.log1p(same)
        liking = self.level[past].sum() / (len(past) + PRICE_PRIOR)
        result[inside, len(VALUE_FIELDS) + 1] = self.level[known] * liking
        return result


def _column(items: pa.Table, name: str) -> list[Any]:
    if name not in items.column_names:
        return [None] * items.num_rows
    return items.column(name).to_pylist()


def _numbers(values: Sequence[object]) -> IntArray:
    """Equal values get equal numbers from 0."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in values], np.int64)


def _values(cells: Sequence[Any], group: IntArray) -> _Values:
    known: dict[str, int] = {}
    values: list[int] = []
    start = np.zeros(len(cells) + 1, np.int64)
    for row, cell in enumerate(cells):
        texts = [cell] if isinstance(cell, str) else cell or ()
        values += (known.setdefault(text, len(known)) for text in texts)
        start[row + 1] = len(values)
    flat = np.array(values, np.int64)
    groups = int(group.max()) + 1 if len(group) else 0
    owner = np.repeat(group, np.diff(start))
    share = np.zeros((groups, len(known)), np.float32)
    np.add.at(share, (owner, flat), 1.0)
    share /= np.maximum(np.bincount(group, minlength=groups), 1)[:, None]
    return _Values(start, flat, share)


def _levels(prices: NDArray[np.float64], leaf: IntArray) -> FloatArray:
    """Rank of each price within its leaf category, −½ … ½; 0 where unknown or alone."""
    level = np.zeros(len(prices), np.float32)
    known = np.flatnonzero(np.isfinite(prices))
    order = known[np.lexsort((prices[known], leaf[known]))]
    leaves, first, counts = np.unique(leaf[order], return_index=True, return_counts=True)
    del leaves
    for begin, count in zip(first, counts, strict=True):
        level[order[begin : begin + count]] = (np.arange(count) + 0.5) / count - 0.5
    return level
