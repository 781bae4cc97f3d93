"""What a batch of changes does to the rows of a view.

Changes take effect in the order given, also within a batch: an item that is added and updated by
the same batch is added with its old numbers, then updated.

A change to what is so already is done by doing nothing: it is neither accepted nor rejected. So a
batch that is sent again leaves no trace, and of a whole feed only what is new goes into the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from index.errors import DataError
from index.live.changes import (
    NUMBERS,
    Accepted,
    AddedItem,
    Change,
    Refused,
    Rejected,
    Update,
    Upsert,
    checked_item,
    checked_update,
    same_but_numbers,
)
from index.live.items import number_or_unknown

if TYPE_CHECKING:
    from index.live.items import LiveItems


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Items to add (as rows n, n + 1, …), rows to remove (added ones too, maybe), then numbers to
    write: price, stock, popularity → distinct rows and their values."""

    accepted: list[Accepted]
    added: list[AddedItem]
    dead: NDArray[np.int64]
    updates: dict[str, tuple[NDArray[np.int64], NDArray[Any]]]
    rejected: list[Rejected]


def plan(items: LiveItems, changes: Sequence[Change | Accepted]) -> Plan:
    """The plan of a batch. Changes that cannot be done are among `rejected`, never half done."""
    accepted: list[Accepted] = []
    rejected: list[Rejected] = []
    added: list[AddedItem] = []
    dead: list[int] = []
    updates: dict[str, dict[int, float]] = {name: {} for name in NUMBERS}
    ids = [_id_of(change) for change in changes]
    known: list[int] = items.rows_of([item_id or "" for item_id in ids]).tolist()
    existing = _existing(items, changes, known)
    moved: dict[str, int] = {}
    n_rows = len(items)
    rows = np.maximum(np.array(known, dtype=np.int64), 0)
    present: dict[str, list[float]] = (
        {name: getattr(items, name)[rows].tolist() for name in NUMBERS} if n_rows else {}
    )

    for index, (change, item_id, row) in enumerate(zip(changes, ids, known, strict=True)):
        if moved:
            row = moved.get(item_id or "", row)
        try:
            if isinstance(change, Update):
                change = checked_update(change)
            elif isinstance(change, Upsert):
                item = checked_item(change.item)
                before = added[row - n_rows].item if row >= n_rows else existing.get(row)
                if before is not None and same_but_numbers(before, item):
                    change = Update(item["item_id"], {name: item[name] for name in NUMBERS})
                else:
                    change = _added(item)
            if isinstance(change, Refused):
                raise DataError(change.reason)
            if isinstance(change, AddedItem):
                if row >= 0:
                    dead.append(row)
                moved[change.item_id] = n_rows + len(added)
                added.append(change)
            elif row < 0:
                raise DataError("no item has this id")
            elif isinstance(change, Update):
                values = {
                    name: number_or_unknown(name, value) for name, value in change.values.items()
                }
                if row < n_rows and all(
                    _same(updates[name].get(row, present[name][index]), value)
                    for name, value in values.items()
                ):
                    continue
                for name, value in values.items():
                    updates[name][row] = value
            else:
                dead.append(row)
                moved[change.item_id] = -1
        except DataError as error:
            rejected.append(Rejected(index, item_id, str(error)))
        else:
            accepted.append(change)
    return Plan(
        accepted,
        added,
        np.array(dead, dtype=np.int64),
        {name: _arrays(name, written) for name, written in updates.items() if written},
        rejected,
    )


def _same(one: float, other: float) -> bool:
    """Whether two numbers, or unknown ones, are the same."""
    return one == other or (one != one and other != other)


def _id_of(change: Change | Accepted) -> str | None:
    if not isinstance(change, Upsert):
        return change.item_id
    item_id = change.item.get("item_id")
    return item_id if isinstance(item_id, str) else None


def _existing(
    items: LiveItems, changes: Sequence[Change | Accepted], rows: list[int]
) -> dict[int, dict[str, Any]]:
    """The items, by row, that upserts name."""
    pairs = zip(changes, rows, strict=True)
    named = sorted({row for change, row in pairs if row >= 0 and isinstance(change, Upsert)})
    return dict(zip(named, items.get_many(np.array(named)), strict=True)) if named else {}


def _added(item: dict[str, Any]) -> AddedItem:
    try:
        return AddedItem(item, orjson.dumps(item))
    except (orjson.JSONEncodeError, TypeError) as error:
        raise DataError(f"cannot be stored: {error}") from None


def _arrays(name: str, written: dict[int, float]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    kind = np.int64 if name == "stock" else np.float64
    rows = np.fromiter(written.keys(), dtype=np.int64, count=len(written))
    return rows, np.fromiter(written.values(), dtype=kind, count=len(written))
