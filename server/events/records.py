"""Events and exposures as they are kept: JSON in two Redis streams, rows of two Parquet schemas.

An *exposure* is what one answered search showed (`server.experiment.records.Exposure`), an *event*
what its user did with one item of it. Both name the search by its `request_id`. In a table each row
also has `entry`, the stream's id of it (`MILLISECONDS-NUMBER`, unique, growing), and `received`,
the Unix time in seconds that this id says. An entry is a position in both the stream and the
exported segments, so a reader can go on in one where it stopped in the other.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, cast

import orjson
import pyarrow as pa

from server.experiment.records import CLICK, ORDER, Exposure
from server.redis.keys import Keys


class Log(StrEnum):
    """One of the two streams."""

    EVENTS = "events"
    EXPOSURES = "exposures"

    def key(self, keys: Keys) -> str:
        """The stream's key in Redis."""
        return keys.events if self is Log.EVENTS else keys.exposures

    @property
    def schema(self) -> pa.Schema:
        """Of its rows in a table."""
        return EVENTS if self is Log.EVENTS else EXPOSURES


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_PLACE = [_required("entry", pa.string()), _required("received", pa.float64())]
EVENTS = pa.schema(
    [
        *_PLACE,
        _required("event_id", pa.string()),
        _required("kind", pa.string()),
        _required("request_id", pa.string()),
        _required("item_id", pa.string()),
        pa.field("user_id", pa.string()),
        _required("time", pa.float64()),
        pa.field("position", pa.int32()),
        _required("simulated", pa.bool_()),
    ]
)
EXPOSURES = pa.schema(
    [
        *_PLACE,
        _required("experiment", pa.string()),
        _required("arm", pa.string()),
        _required("unit", pa.string()),
        _required("request_id", pa.string()),
        _required("time", pa.float64()),
        _required("items", pa.list_(pa.string())),
        _required("query", pa.string()),
        pa.field("share", pa.float64()),
        pa.field("history_items", pa.int32()),
        _required("model_version", pa.string()),
        _required("index_version", pa.string()),
        _required("simulated", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a user did. `position` counts from 1; `time` is Unix time, seconds."""

    event_id: str
    kind: str
    request_id: str
    item_id: str
    user_id: str | None
    time: float
    position: int | None = None
    simulated: bool = False

    @property
    def touches(self) -> bool:
        """Whether it says what its user is interested in."""
        return self.user_id is not None and self.kind in (CLICK, ORDER)

    def to_json(self) -> bytes:
        """As it is kept; what is not known is left out."""
        return _kept((name, getattr(self, name)) for name in self.__slots__)


class Entry(NamedTuple):
    """A place in a stream; entries compare as the stream orders them."""

    milliseconds: int
    number: int

    @classmethod
    def of(cls, text: str) -> Entry:
        """From `MILLISECONDS-NUMBER`. Raises ValueError."""
        milliseconds, _, number = text.partition("-")
        return cls(int(milliseconds), int(number or 0))

    @property
    def padded(self) -> str:
        """With leading zeros, so that texts are ordered as entries are."""
        return f"{self.milliseconds:015d}-{self.number:06d}"

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.number}"


START = Entry(0, 0)
"""Before every entry."""


def exposure_to_json(exposure: Exposure) -> bytes:
    """As it is kept."""
    return _kept(exposure.to_json().items())


def table_of(log: Log, entries: Sequence[tuple[Entry, bytes]]) -> pa.Table:
    """Rows of kept entries. What this program cannot read, of another one perhaps, is no row."""
    rows = [row for entry, kept in entries if (row := _row(log, entry, kept)) is not None]
    return pa.Table.from_pylist(rows, schema=log.schema)


def _row(log: Log, entry: Entry, kept: bytes) -> dict[str, Any] | None:
    try:
        values = cast(object, orjson.loads(kept))
    except orjson.JSONDecodeError:
        return None
    if not isinstance(values, dict):
        return None
    row = _DEFAULTS[log] | cast(dict[str, Any], values)
    row |= {"entry": str(entry), "received": entry.milliseconds / 1000}
    lacking = any(row.get(field.name) is None for field in log.schema if not field.nullable)
    return None if lacking else row


_DEFAULTS: dict[Log, dict[str, Any]] = {
    Log.EVENTS: {"simulated": False},
    Log.EXPOSURES: {"simulated": False, "query": "", "model_version": "", "index_version": ""},
}


def _kept(pairs: Iterable[tuple[str, Any]]) -> bytes:
    """JSON without what is not known or says nothing."""
    said = {name: value for name, value in pairs if value is not None and value is not False}
    return orjson.dumps(said)
