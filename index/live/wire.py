"""Changes as bytes, between the process that is handed them and the one that makes them.

A call is a list of lists in JSON, each a letter and what belongs to that kind of change. JSON says
less than Python: a number that is not finite becomes null, other objects have no form at all. What
would be understood differently is judged before it is sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from index.errors import DataError
from index.live.changes import (
    Change,
    Delete,
    Refused,
    Update,
    Upsert,
    checked_item,
    checked_update,
)


def to_bytes(changes: Sequence[Change]) -> bytes:
    """A call's changes; what cannot be sent is sent as refused."""
    try:
        data = orjson.dumps([_parts(change) for change in changes], _plain)
    except (orjson.JSONEncodeError, TypeError):
        pass
    else:
        if b"null" not in data or not any(_is_changed_by_json(change) for change in changes):
            return data
    return orjson.dumps([_parts(_sendable(change)) for change in changes], _plain)


def from_bytes(data: bytearray) -> list[Change]:
    """The changes of a call."""
    return [_change(parts) for parts in cast(list[list[Any]], orjson.loads(data))]


def _change(parts: list[Any]) -> Change:
    match parts[0]:
        case "u":
            return Update(parts[1], parts[2])
        case "i":
            return Upsert(parts[1])
        case "d":
            return Delete(parts[1])
        case _:
            return Refused(parts[1], parts[2])


def _parts(change: Change) -> tuple[Any, ...]:
    # Not the change itself: of objects with slots orjson makes JSON slowly.
    if type(change) is Update:
        return "u", change.item_id, change.values
    if type(change) is Upsert:
        return "i", change.item
    if type(change) is Refused:
        return "r", change.item_id, change.reason
    assert type(change) is Delete, change
    return "d", change.item_id


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(cast(Mapping[Any, Any], value))
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _is_changed_by_json(change: Change) -> bool:
    """Whether a number that is not finite would arrive as unknown."""
    if isinstance(change, Update):
        values = change.values.values()
    elif isinstance(change, Upsert):
        values = change.item.values()
    else:
        return False
    return any(isinstance(value, float) and not math.isfinite(value) for value in values)


def _sendable(change: Change) -> Change:
    """A change in clean form, or refused as its plan would refuse it."""
    item_id: object = None
    try:
        if isinstance(change, Upsert):
            item_id = change.item.get("item_id")
            change = Upsert(checked_item(change.item))
        elif isinstance(change, Update):
            item_id = change.item_id
            change = checked_update(change)
        orjson.dumps(change, _plain)
    except DataError as error:
        reason = str(error)
    except (orjson.JSONEncodeError, TypeError) as error:
        reason = f"cannot be stored: {error}"
    else:
        return change
    return Refused(item_id if isinstance(item_id, str) and _is_text(item_id) else None, reason)


def _is_text(value: str) -> bool:
    """Whether a text can be stored: a lone surrogate cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
