"""Changes of a catalogue: what callers ask for, what was made of it, how it lies in the log.

A change is an `Upsert` (a whole item), an `Update` (price, stock, popularity) or a `Delete`. One
that cannot be done is a `Rejected`, and the others go on. An upsert that differs from the item as
it is in price, stock or popularity only is an update; any other one of a known id removes the old
item and adds the new one.

A log record holds accepted changes as JSON, then of each added item its codes, uint16 (n, L), and
its embedding, float16 (n, d), so that reading a log needs no encoder.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from index.dataset import ITEMS
from index.errors import ArtifactError, DataError

NUMBERS = ("price", "stock", "popularity")
FIELDS: tuple[str, ...] = tuple(ITEMS.names)
LISTS = ("category", "color", "material", "audience", "function")
_TEXTS = ("description", "brand")
_STATIC = tuple(name for name in FIELDS if name not in NUMBERS)
_KNOWN = frozenset(FIELDS)
_LENGTH = struct.Struct("<I")
_MAX_STOCK = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Upsert:
    """Add an item, or replace the one of the same id. Fields as in `index.dataset.ITEMS`, in their
    clean form; one that is not given is unknown."""

    item: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Update:
    """New values of some of price, stock and popularity; None makes one unknown."""

    item_id: str
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove an item."""

    item_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A change that was found impossible on its way here: it is rejected for `reason`."""

    item_id: str | None
    reason: str


Change = Upsert | Update | Delete | Refused


@dataclass(frozen=True, slots=True)
class Rejected:
    """A change that was not done: its place in the call, the id that it names, and why."""

    index: int
    item_id: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a call's changes.

    `sequence`: number of the catalogue's last change, these included; a view with at least this
    sequence shows them all.
    """

    sequence: int
    applied: int
    rejected: tuple[Rejected, ...] = ()


def checked_item(values: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of an item, absent ones None. Raises DataError for a value of the wrong kind."""
    if not values.keys() <= _KNOWN:
        raise DataError(f"unknown; an item has {', '.join(FIELDS)}", field=_unknown(values))
    item: dict[str, Any] = {name: values.get(name) for name in FIELDS}
    for name in ("item_id", "title"):
        if not isinstance(item[name], str) or not item[name].strip():
            raise DataError("must be text that is not empty", field=name)
    for name in _TEXTS:
        if item[name] is not None and not isinstance(item[name], str):
            raise DataError("must be text", field=name)
        item[name] = item[name] or None
    for name in LISTS:
        item[name] = _texts(name, item[name])
    attributes = item["attributes"]
    if attributes is not None:
        if not isinstance(attributes, Mapping):
            raise DataError("must be an object of names and their values", field="attributes")
        given = cast(Mapping[Any, Any], attributes)
        named = {str(name): _texts("attributes", part) for name, part in given.items()}
        item["attributes"] = {name: part for name, part in named.items() if part} or None
    for name in NUMBERS:
        item[name] = checked_number(name, item[name])
    return item


def checked_number(name: str, value: object) -> float | None:
    """A price, stock or popularity. Raises DataError unless it is None, or finite and ≥ 0."""
    if type(value) is float and name != "stock" and 0.0 <= value < math.inf:
        return value
    if type(value) is int and name == "stock" and 0 <= value <= _MAX_STOCK:
        return value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError("must be a number", field=name)
    if not math.isfinite(value) or value < 0:
        raise DataError("must be finite and at least 0", field=name)
    if name != "stock":
        return float(value)
    if value != int(value) or value > _MAX_STOCK:
        raise DataError("must be a whole number", field=name)
    return int(value)


def checked_update(update: Update) -> Update:
    """The update with its numbers in clean form. Raises DataError for what cannot be updated."""
    if not update.values:
        raise DataError("names nothing to change: give price, stock or popularity")
    values: dict[str, float | None] = {}
    for name, value in update.values.items():
        if name not in NUMBERS:
            raise DataError("cannot be updated; upsert the whole item", field=name)
        values[name] = checked_number(name, value)
    return Update(update.item_id, values)


def same_but_numbers(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two items differ in price, stock and popularity at most; empty is unknown."""
    return all((one.get(name) or None) == (other.get(name) or None) for name in _STATIC)


@dataclass(frozen=True, slots=True, eq=False)
class AddedItem:
    """An item to add; one with its id is removed first. `payload`: the item as JSON."""

    item: dict[str, Any]
    payload: bytes

    @property
    def item_id(self) -> str:
        return cast(str, self.item["item_id"])


Accepted = AddedItem | Update | Delete


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """Accepted changes in order; `codes` int32 (n, L) and `embeddings` float16 (n, d) of the added
    items among them."""

    changes: Sequence[Accepted]
    codes: NDArray[np.int32]
    embeddings: NDArray[np.float16]

    def to_bytes(self) -> bytes:
        plain = [
            ["update", one.item_id, one.values] if type(one) is Update else _plain(one)
            for one in self.changes
        ]
        text = orjson.dumps(plain)
        codes = self.codes.astype("<u2").tobytes()
        return _LENGTH.pack(len(text)) + text + codes + self.embeddings.astype("<f2").tobytes()

    @classmethod
    def from_bytes(cls, payload: bytes, levels: int, dimension: int) -> Record:
        """Raises ArtifactError when the parts do not fit each other, the layout or the encoder."""
        try:
            (length,) = _LENGTH.unpack_from(payload)
            end = _LENGTH.size + length
            changes = [_change(part) for part in orjson.loads(payload[_LENGTH.size : end])]
        except (struct.error, ValueError, KeyError, TypeError, IndexError) as error:
            raise ArtifactError(f"a record of the change log cannot be read: {error}") from None
        n_added = sum(isinstance(change, AddedItem) for change in changes)
        if len(payload) != end + 2 * n_added * (levels + dimension):
            raise ArtifactError(
                f"a record of the change log does not hold {levels} codes and {dimension} "
                "dimensions of each added item; it belongs to another snapshot"
            )
        codes = np.frombuffer(payload, "<u2", n_added * levels, end).reshape(n_added, levels)
        start = end + codes.nbytes
        embeddings = np.frombuffer(payload, "<f2", n_added * dimension, start)
        return cls(
            changes,
            codes.astype(np.int32),
            embeddings.astype(np.float16, copy=False).reshape(n_added, dimension),
        )


def _plain(change: Accepted) -> list[Any]:
    match change:
        case Update(item_id, values):
            return ["update", item_id, dict(values)]
        case Delete(item_id):
            return ["delete", item_id]
        case AddedItem():
            return ["add", orjson.Fragment(change.payload)]


def _change(part: list[Any]) -> Accepted:
    match part[0]:
        case "update":
            return Update(part[1], part[2])
        case "delete":
            return Delete(part[1])
        case "add":
            return AddedItem(part[1], orjson.dumps(part[1]))
        case kind:
            raise ValueError(f"unknown kind of change {kind!r}")


def _texts(name: str, value: Any) -> list[str] | None:
    """A list of texts, None when empty."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise DataError("must be a list of texts", field=name)
    parts = cast(Sequence[Any], value)
    if not all(isinstance(part, str) for part in parts):
        raise DataError("must be a list of texts", field=name)
    return list(parts) or None


def _unknown(values: Mapping[str, Any]) -> str:
    return min(str(name) for name in values.keys() - _KNOWN)
