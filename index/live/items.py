"""The items of a snapshot with changes: added rows behind the base's, numbers that changed.

Base rows keep their numbers; added item i is row `len(base) + i`. Rows are never used again: a
replaced item is deleted and added. Price, stock and popularity are columns whose values change;
all other fields of a row stay. Popularity scores are in the scale of the base catalogue.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.items import FILTER_FIELDS, UNKNOWN_STOCK, ItemFilter, ItemTable
from index.live.arrays import Column, Tail
from index.live.delta import Delta


class PopularityScale(NamedTuple):
    """Mean and deviation of log(1 + popularity) in the base catalogue."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, popularity: NDArray[np.floating[Any]]) -> PopularityScale:
        logs = np.log1p(np.maximum(np.nan_to_num(popularity.astype(np.float64)), 0.0))
        return cls(float(logs.mean()), float(logs.std())) if len(logs) else cls(0.0, 0.0)

    def scores(self, popularity: NDArray[np.float64]) -> NDArray[np.float32]:
        """z-scores of popularities, NaN where unknown, float32 (n,)."""
        if self.deviation < 1e-9 or not len(popularity):
            return np.zeros(len(popularity), dtype=np.float32)
        logs = np.log1p(np.maximum(np.nan_to_num(popularity), 0.0))
        return ((logs - self.mean) / self.deviation).astype(np.float32)


class FieldValues(NamedTuple):
    """Values of filter fields of added items: item `rows[i]` (added items count from 0) has value
    number `numbers[i]` of field FILTER_FIELDS[`fields[i]`]. Batch after batch, so those of some
    view are all before those of items added since."""

    rows: NDArray[np.int64]
    numbers: NDArray[np.int64]
    fields: NDArray[np.int64]


_FIELD_NUMBERS = np.arange(len(FILTER_FIELDS))


class AddedItems:
    """What was added to a base, for all of its views: it only grows. One writer.

    Items are kept as JSON: a few objects instead of dozens for each, which the garbage collector
    would have to visit.
    """

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.item_ids: list[str] = []
        self.latest: dict[str, int] = {}
        """Item id → the last added item of that id."""
        self.previous = Tail(np.empty(0, dtype=np.int64))
        """The added item of the same id before this one, -1 for none."""
        self.numbers: dict[str, dict[str, int]] = {name: {} for name in FILTER_FIELDS}
        """Field → value in normal form → its number among the added items' values."""
        self._values = [Tail(np.empty(0, dtype=np.int64)) for _ in FieldValues._fields]

    def __len__(self) -> int:
        return len(self.payloads)

    def append(self, delta: Delta) -> None:
        """Take what a delta made for the newest view adds."""
        first = len(self.payloads)
        self.payloads += delta.payloads
        self.item_ids += delta.item_ids
        self.latest.update(zip(delta.item_ids, count(first), strict=False))
        self.previous.append(delta.previous)
        for name, new in zip(FILTER_FIELDS, delta.values, strict=True):
            if new:
                known = self.numbers[name]
                known.update(zip(new, count(len(known)), strict=False))
        fields = np.repeat(_FIELD_NUMBERS, delta.field_counts)
        for tail, part in zip(
            self._values, (delta.field_rows, delta.field_numbers, fields), strict=True
        ):
            tail.append(part)

    def field_values(self) -> FieldValues:
        """The filter fields as they are now."""
        return FieldValues(*(tail.values for tail in self._values))


@dataclass(frozen=True, slots=True, eq=False)
class LiveItems:
    """The items of a view. Immutable; safe to share between threads.

    `alive`: None when nothing was deleted. `popularity`: NaN where unknown.
    """

    base: ItemTable
    added: AddedItems
    n_added: int
    fields: FieldValues
    alive: Column[np.bool_] | None
    price: Column[np.float64]
    stock: Column[np.int64]
    popularity: Column[np.float64]
    popularity_score: Column[np.float32]
    scale: PopularityScale

    @classmethod
    def of(cls, base: ItemTable) -> LiveItems:
        """A base without changes."""
        added = AddedItems()
        popularity = np.full(len(base), np.nan)
        if "popularity" in base.table.column_names:
            column = base.column("popularity").cast(pa.float64())
            popularity = pc.fill_null(column, np.nan).to_numpy()
        return cls(
            base,
            added,
            0,
            added.field_values(),
            None,
            Column.of(base.price),
            Column.of(base.stock),
            Column.of(popularity),
            Column.of(base.popularity_score),
            PopularityScale.of(base.popularity),
        )

    def __len__(self) -> int:
        """Number of rows, deleted ones too: what masks of rows are as long as."""
        return len(self.base) + self.n_added

    def item_ids(self, rows: NDArray[np.integer[Any]]) -> list[str]:
        """Item ids of the given rows."""
        rows = np.asarray(rows, dtype=np.int64)
        inside = rows < len(self.base)
        base = iter(self.base.item_ids(rows[inside]) if inside.any() else ())
        ids = self.added.item_ids
        return [
            next(base) if known else ids[row - len(self.base)]
            for row, known in zip(rows.tolist(), inside.tolist(), strict=True)
        ]

    def rows_of(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """Row of each item id, int64; -1 where there is no such item."""
        rows = self.base.rows_of(item_ids)
        if self.n_added:
            latest = self.added.latest
            added = [latest.get(item_id, -1) for item_id in item_ids]
            if max(added, default=-1) >= 0:
                place = np.array(added, dtype=np.int64)
                previous = self.added.previous.values
                # Items that were added since this view are not its own.
                while (late := place >= self.n_added).any():
                    place[late] = previous[place[late]]
                rows = np.where(place >= 0, place + len(self.base), rows)
        if self.alive is not None:
            rows = np.where((rows >= 0) & self.alive[rows], rows, -1)
        return rows

    def row_of(self, item_id: str) -> int | None:
        """Row of an item id, or None."""
        row = int(self.rows_of([item_id])[0])
        return row if row >= 0 else None

    def get(self, row: int) -> dict[str, Any]:
        """All columns of one row as plain Python values; `attributes` becomes a dict."""
        return self.get_many(np.array([row]))[0]

    def get_many(
        self, rows: NDArray[np.integer[Any]], names: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """`get` for several rows at once, in the order given; deleted rows as they were. `names`:
        the columns that are wanted; others may be there."""
        rows = np.asarray(rows, dtype=np.int64)
        inside = rows < len(self.base)
        base = iter(self.base.get_many(rows[inside], names) if inside.any() else ())
        payloads = self.added.payloads
        items: list[dict[str, Any]] = [
            next(base) if known else cast(dict[str, Any], orjson.loads(payloads[row]))
            for row, known in zip((rows - len(self.base) * ~inside).tolist(), inside, strict=True)
        ]
        columns = {"price": self.price, "stock": self.stock, "popularity": self.popularity}
        for name, column in columns.items():
            if names is not None and name not in names:
                continue
            unknown = UNKNOWN_STOCK if name == "stock" else None
            for item, value in zip(items, column[rows].tolist(), strict=True):
                item[name] = None if value == unknown else _known(value)
        return items

    def values(self, name: str) -> list[str]:
        """The distinct values of a filter field, in normal form, sorted; also those that only
        deleted items have."""
        own = self.fields.fields == FILTER_FIELDS.index(name)
        n_known = int(self.fields.numbers[own].max(initial=-1)) + 1
        known = self.added.numbers[name]
        added = [value for value, number in known.items() if number < n_known]
        return sorted({*self.base.values(name), *added})

    def rows_with(self, name: str, wanted: Sequence[str], first: int = 0) -> NDArray[np.int64]:
        """Rows ≥ `first` with one of the values (in normal form) of a filter field, in any order,
        maybe repeated, deleted ones too. `first`: 0, or the number of rows of some view."""
        parts: list[NDArray[Any]] = []
        if first < len(self.base):
            for value in wanted:
                rows = self.base.rows_with(name, value)
                parts.append(rows[np.searchsorted(rows, first) :])
        begin = np.searchsorted(self.fields.rows, first - len(self.base))
        rows, numbers, fields = (part[begin:] for part in self.fields)
        known = self.added.numbers[name]
        own = fields == FILTER_FIELDS.index(name)
        for value in wanted:
            number = known.get(value)
            if number is not None:
                parts.append(rows[own & (numbers == number)] + len(self.base))
        if not parts:
            return np.empty(0, dtype=np.int64)
        return np.concatenate(parts).astype(np.int64)

    def mask(self, filters: ItemFilter) -> NDArray[np.bool_]:
        """Rows that hold all conditions and were not deleted, bool (n,). Computed anew each time;
        `CatalogueView.filter` keeps what it computed."""
        mask = self.static_mask(filters, 0)
        holds = self.numbers_hold(filters)
        return holds if mask is None else mask & holds

    def static_mask(self, filters: ItemFilter, first: int) -> NDArray[np.bool_] | None:
        """Which rows from `first` on hold the conditions on fields that never change, bool
        (n - first,); None when there are none."""
        mask: NDArray[np.bool_] | None = None
        for name in FILTER_FIELDS:
            wanted = cast(tuple[str, ...], getattr(filters, name))
            if not wanted:
                continue
            having = np.zeros(len(self) - first, dtype=np.bool_)
            having[self.rows_with(name, wanted, first) - first] = True
            mask = having if mask is None else mask & having
        return mask

    def numbers_hold(
        self, filters: ItemFilter, rows: NDArray[np.int64] | None = None
    ) -> NDArray[np.bool_]:
        """Which of the rows (None: all) hold the conditions on price and stock and were not
        deleted, bool."""
        holds = np.ones(len(self) if rows is None else len(rows), dtype=np.bool_)
        if self.alive is not None:
            holds &= self.alive.whole() if rows is None else self.alive[rows]
        low, high = filters.price_min, filters.price_max
        if low is not None:
            holds &= _where(self.price, lambda price: price >= low, rows)
        if high is not None:
            holds &= _where(self.price, lambda price: price <= high, rows)
        if filters.in_stock:
            holds &= _where(self.stock, lambda stock: stock != 0, rows)
        return holds

    def own(self) -> None:
        """See `Column.own`, for all columns: so the first change takes no longer than others."""
        for column in (self.price, self.stock, self.popularity, self.popularity_score):
            column.own()

    def with_delta(self, delta: Delta) -> LiveItems:
        """The items after a delta made for this state, the newest of its base."""
        assert self.n_added == len(self.added), "changes go on from the newest view"
        if delta.n_added:
            self.added.append(delta)
        alive = self.alive
        if alive is None and len(delta.dead):
            alive = Column.of(np.ones(len(self), dtype=np.bool_))
        if alive is not None and (len(delta.dead) or delta.n_added):
            gone = np.zeros(len(delta.dead), dtype=np.bool_)
            alive = alive.after(delta.dead, gone, np.ones(delta.n_added, dtype=np.bool_))
        return LiveItems(
            self.base,
            self.added,
            self.n_added + delta.n_added,
            self.added.field_values() if delta.n_added else self.fields,
            alive,
            self.price.after(delta.price_rows, delta.price_values, delta.price_added),
            self.stock.after(delta.stock_rows, delta.stock_values, delta.stock_added),
            self.popularity.after(
                delta.popularity_rows, delta.popularity_values, delta.popularity_added
            ),
            self.popularity_score.after(
                delta.popularity_rows, delta.score_values, delta.score_added
            ),
            self.scale,
        )


def number_or_unknown(name: str, value: float | None) -> float:
    """A value of price, stock or popularity as its column holds it."""
    if value is None:
        return UNKNOWN_STOCK if name == "stock" else np.nan
    return value


def _known(value: float) -> float | None:
    return None if value != value else value


def _where(
    column: Column[Any],
    test: Callable[[NDArray[Any]], NDArray[np.bool_]],
    rows: NDArray[np.int64] | None,
) -> NDArray[np.bool_]:
    """Which values of a column, all or those of some rows, pass a test."""
    if rows is not None:
        return test(column[rows])
    passed = test(column.newest)
    changed, before = column.changed_since()
    passed[changed] = test(before)
    return passed
