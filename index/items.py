"""The catalogue inside a snapshot: rows for answers, columns for filters.

```
items.arrow                 the items table, Arrow IPC, memory-mapped; a row number is an item
price.npy stock.npy         float64 (NaN unknown), int64 (-1 unknown)
popularity.npy              float32, unknown = 0
popularity_score.npy        float32, log(1 + popularity), z-scored over the catalogue
id_hash.npy id_row.npy      64-bit hashes of the item ids, ascending, and their rows
FIELD_{start,rows}.npy      for brand, category, color, material: rows of each value
values.json                 the values of those fields in normal form, and the hash's salt
```
Invariants: item ids are unique. A mask is a pure function of the filter.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.arrays import open_array, save_arrays
from index.errors import ArtifactError, ConfigError, DataError
from index.text import normalise

FILTER_FIELDS = ("brand", "category", "color", "material")
MAX_CACHED_MASKS = 64
UNKNOWN_STOCK = -1
_TABLE = "items.arrow"
_VALUES = "values.json"


@dataclass(frozen=True, slots=True)
class ItemFilter:
    """Conditions on items. Any value of a field will do; all given fields must hold.

    Values are compared in normal form, so case and spacing do not matter. A category matches at any
    of its levels. An item of unknown price fails a price bound; one of unknown stock counts as in
    stock. Equal conditions make equal filters. Raises ConfigError for bounds that exclude all.
    """

    category: tuple[str, ...] = ()
    brand: tuple[str, ...] = ()
    color: tuple[str, ...] = ()
    material: tuple[str, ...] = ()
    price_min: float | None = None
    price_max: float | None = None
    in_stock: bool = False

    def __post_init__(self) -> None:
        for name in FILTER_FIELDS:
            values = cast(Sequence[str], getattr(self, name))
            if isinstance(values, str):
                raise ConfigError(f"filter {name} must be a tuple of values, got {values!r}")
            object.__setattr__(self, name, tuple(sorted({normalise(value) for value in values})))
        low, high = self.price_min, self.price_max
        if low is not None and high is not None and low > high:
            raise ConfigError(f"price_min {low} is above price_max {high}")

    @property
    def is_empty(self) -> bool:
        """Whether there is no condition at all."""
        return self == ItemFilter()


@dataclass(frozen=True, slots=True, eq=False)
class _Postings:
    """Rows of each value of a field: rows[start[v]:start[v + 1]]."""

    values: dict[str, int]
    start: NDArray[np.uint32]
    rows: NDArray[np.uint32]

    def rows_of(self, value: str) -> NDArray[np.uint32]:
        """Rows that have the value, ascending."""
        number = self.values.get(value)
        if number is None:
            return self.rows[:0]
        return self.rows[self.start[number] : self.start[number + 1]]

    def mark(self, wanted: Iterable[str], mask: NDArray[np.bool_]) -> None:
        """Set the mask's rows that have one of the values."""
        for value in wanted:
            mask[self.rows_of(value)] = True


@dataclass(frozen=True, slots=True, eq=False)
class _MaskCache:
    """The masks used last, by filter."""

    masks: OrderedDict[ItemFilter, NDArray[np.bool_]] = field(
        default_factory=OrderedDict[ItemFilter, NDArray[np.bool_]]
    )
    lock: Lock = field(default_factory=Lock)

    def get(self, key: ItemFilter) -> NDArray[np.bool_] | None:
        with self.lock:
            mask = self.masks.get(key)
            if mask is not None:
                self.masks.move_to_end(key)
            return mask

    def put(self, key: ItemFilter, mask: NDArray[np.bool_]) -> None:
        with self.lock:
            self.masks[key] = mask
            self.masks.move_to_end(key)
            while len(self.masks) > MAX_CACHED_MASKS:
                self.masks.popitem(last=False)


@dataclass(frozen=True, slots=True, eq=False)
class ItemTable:
    """The items of a snapshot. Safe to share between threads."""

    table: pa.Table
    price: NDArray[np.float64]
    stock: NDArray[np.int64]
    popularity: NDArray[np.float32]
    popularity_score: NDArray[np.float32]
    _id_hash: NDArray[np.uint64]
    _id_row: NDArray[np.uint32]
    _salt: int
    _fields: dict[str, _Postings]
    _cache: _MaskCache = field(default_factory=_MaskCache)

    @classmethod
    def write(cls, directory: Path, items: pa.Table) -> ItemTable:
        """Encode a table of schema `index.dataset.ITEMS` (optional columns may be absent), open it.

        Raises DataError for a repeated or missing item id.
        """
        directory.mkdir(parents=True, exist_ok=True)
        items = items.combine_chunks()
        with (
            pa.OSFile(str(directory / _TABLE), "wb") as sink,
            pa.ipc.new_file(sink, items.schema) as writer,
        ):
            writer.write_table(items)
        salt, hashes = _unique_hashes(items["item_id"].to_pylist())
        order = np.argsort(hashes)
        popularity = np.nan_to_num(
            _numbers(items, "popularity", 0.0, pa.float64()), posinf=0.0, neginf=0.0
        )
        arrays: dict[str, NDArray[Any]] = {
            "price": _numbers(items, "price", np.nan, pa.float64()),
            "stock": np.maximum(_numbers(items, "stock", UNKNOWN_STOCK, pa.int64()), UNKNOWN_STOCK),
            "popularity": popularity.astype(np.float32),
            "popularity_score": _standardised(np.log1p(np.maximum(popularity, 0.0))),
            "id_hash": hashes[order],
            "id_row": order.astype(np.uint32),
        }
        values: dict[str, list[str]] = {}
        for name in FILTER_FIELDS:
            values[name], start, rows = _rows_of_values(items, name)
            arrays |= {f"{name}_start": start, f"{name}_rows": rows}
        save_arrays(directory, arrays)
        facts = {"salt": salt, "values": values}
        (directory / _VALUES).write_bytes(orjson.dumps(facts))
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path) -> ItemTable:
        """Memory-map a written table. Raises ArtifactError when files are missing or damaged."""
        directory = Path(directory)
        try:
            facts = cast(dict[str, Any], orjson.loads((directory / _VALUES).read_bytes()))
            table = pa.ipc.open_file(pa.memory_map(str(directory / _TABLE))).read_all()
        except (OSError, pa.ArrowInvalid, orjson.JSONDecodeError) as error:
            raise ArtifactError(f"{directory} is no item table: {error}") from None

        def array(name: str) -> NDArray[Any]:
            return open_array(directory / f"{name}.npy")

        fields = {
            name: _Postings(
                {value: number for number, value in enumerate(facts["values"][name])},
                array(f"{name}_start"),
                array(f"{name}_rows"),
            )
            for name in FILTER_FIELDS
        }
        names = ("price", "stock", "popularity", "popularity_score", "id_hash", "id_row")
        columns = [array(name) for name in names]
        if any(len(column) != len(table) for column in columns):
            raise ArtifactError(f"the files of {directory} disagree; build the index again")
        price, stock, popularity, score, hashes, rows = columns
        salt = int(facts["salt"])
        return cls(table, price, stock, popularity, score, hashes, rows, salt, fields)

    def __len__(self) -> int:
        return len(self.price)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of the table, in row order."""
        return self.table[name]

    def item_ids(self, rows: NDArray[np.integer[Any]]) -> list[str]:
        """Item ids of the given rows."""
        return self.table["item_id"].take(pa.array(rows)).to_pylist()

    def rows_of(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """Row of each item id, int64; -1 where there is no such item."""
        if not len(self) or not item_ids:
            return np.full(len(item_ids), -1, dtype=np.int64)
        hashes = _hashes(item_ids, self._salt)
        position = np.minimum(np.searchsorted(self._id_hash, hashes), len(self) - 1)
        rows = self._id_row[position].astype(np.int64)
        known = self._id_hash[position] == hashes
        # Another id may share a hash with one of ours: the ids themselves decide.
        named = pc.equal(self.table["item_id"].take(pa.array(rows)), pa.array(item_ids))
        known &= named.to_numpy()
        return np.where(known, rows, -1)

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
        """`get` for several rows at once, in the order given; much cheaper than one by one, and
        still cheaper where only some columns are wanted: `names`."""
        table = self.table if names is None else self.table.select(names)
        found = cast(list[dict[str, Any]], table.take(pa.array(rows)).to_pylist())
        for item in found:
            if item.get("attributes") is not None:
                item["attributes"] = dict(item["attributes"])
        return found

    def values(self, name: str) -> list[str]:
        """The distinct values of a filter field, in normal form, sorted."""
        return list(self._fields[name].values)

    def rows_with(self, name: str, value: str) -> NDArray[np.uint32]:
        """Rows that have a value (in normal form) of a filter field, ascending."""
        return self._fields[name].rows_of(value)

    def mask(self, filters: ItemFilter) -> NDArray[np.bool_]:
        """Rows that hold all conditions, bool (n_items,), read-only; the last masks are kept."""
        known = self._cache.get(filters)
        if known is not None:
            return known
        mask = np.ones(len(self), dtype=np.bool_)
        for name in FILTER_FIELDS:
            wanted = cast(tuple[str, ...], getattr(filters, name))
            if wanted:
                having = np.zeros(len(self), dtype=np.bool_)
                self._fields[name].mark(wanted, having)
                mask &= having
        if filters.price_min is not None:
            mask &= self.price >= filters.price_min
        if filters.price_max is not None:
            mask &= self.price <= filters.price_max
        if filters.in_stock:
            mask &= self.stock != 0
        mask.flags.writeable = False
        self._cache.put(filters, mask)
        return mask


def _hashes(item_ids: Sequence[str], salt: int) -> NDArray[np.uint64]:
    key = salt.to_bytes(8, "little")
    digests = b"".join(
        hashlib.blake2b(item_id.encode(), digest_size=8, key=key).digest() for item_id in item_ids
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _unique_hashes(item_ids: Sequence[str | None]) -> tuple[int, NDArray[np.uint64]]:
    """Hashes without a collision and the salt that gave them."""
    seen: dict[str, int] = {}
    for row, item_id in enumerate(item_ids):
        if not item_id:
            raise DataError("an item needs an id", row=row + 1, field="item_id")
        if seen.setdefault(item_id, row) != row:
            raise DataError(
                f"item id {item_id!r} was seen in row {seen[item_id] + 1}; ids must be unique",
                row=row + 1,
                field="item_id",
            )
    for salt in count():
        hashes = _hashes(cast(Sequence[str], item_ids), salt)
        if len(np.unique(hashes)) == len(hashes):
            return salt, hashes
    raise AssertionError("count() does not end")


def _numbers(items: pa.Table, name: str, unknown: float, kind: pa.DataType) -> NDArray[Any]:
    """A numeric column with its nulls replaced; an absent column is all unknown."""
    if name not in items.column_names:
        return np.full(len(items), unknown, dtype=kind.to_pandas_dtype())
    return pc.fill_null(items[name].cast(kind), pa.scalar(unknown, kind)).to_numpy()


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Values with mean 0 and deviation 1; all 0 where they do not differ."""
    deviation = values.std() if len(values) else 0.0
    if deviation < 1e-9:
        return np.zeros(len(values), dtype=np.float32)
    return ((values - values.mean()) / deviation).astype(np.float32)


def _rows_of_values(
    items: pa.Table, name: str
) -> tuple[list[str], NDArray[np.uint32], NDArray[np.uint32]]:
    """Values of a string or list<string> column in normal form, sorted, and the rows of each."""
    if name not in items.column_names:
        return [], np.zeros(1, dtype=np.uint32), np.empty(0, dtype=np.uint32)
    column = items[name].combine_chunks()
    row = np.arange(len(items))
    if pa.types.is_list(column.type):
        row = pc.list_parent_indices(column).to_numpy()
        column = pc.list_flatten(column)
    encoded = pc.dictionary_encode(column)
    number = pc.fill_null(encoded.indices, -1).to_numpy()
    normal = [normalise(value) for value in encoded.dictionary.to_pylist()]
    values = sorted({value for value in normal if value})
    position = {value: index for index, value in enumerate(values)}
    # One entry more than there are distinct values: a null's number -1 picks it.
    value_of = np.array([*(position.get(value, -1) for value in normal), -1], dtype=np.int64)
    value = value_of[number]
    pairs = np.unique(value[value >= 0] * max(len(items), 1) + row[value >= 0])
    value, row = np.divmod(pairs, max(len(items), 1))
    start = np.zeros(len(values) + 1, dtype=np.uint32)
    np.cumsum(np.bincount(value, minlength=len(values)), out=start[1:], dtype=np.uint32)
    return values, start, row.astype(np.uint32)
