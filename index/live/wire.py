"""Changes as bytes, between the process that is handed them and the one that makes them.

JSON says less than Python: a number that is not finite becomes null, other objects have no form at
all. What would be understood differently is judged before it is sent.
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
        data = orjson.dumps(changes if type(changes) is list else list(changes), _plain)
    except (orjson.JSONEncodeError, TypeError):
        return orjson.dumps([_sendable(change) for change in changes])
    if b"null" in data and any(_is_changed_by_json(change) for change in changes):
        return orjson.dumps([_sendable(change) for change in changes], _plain)
    return data


def from_bytes(data: bytearray) -> list[Change]:
    """The changes of a call."""
    return [_change(part) for part in cast(list[dict[str, Any]], orjson.loads(data))]


def _change(part: dict[str, Any]) -> Change:
    if "values" in part:
        return Update(part["item_id"], part["values"])
    if "item" in part:
        return Upsert(part["item"])
    if "reason" in part:
        return Refused(part["item_id"], part["reason"])
    return Delete(part["item_id"])


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
