"""What the gateway and the shop write down, and what a report reads: JSON lines, Parquet, or the
directory that `onesearch events export` writes.

**Exposures**, one for each answered search of a unit in an experiment:

| field | | |
|---|---|---|
| `experiment`, `arm` | text, required | experiment "": in none, arm champion |
| `unit` | text, required | what was assigned: `user:ID` or `request:ID` |
| `request_id` | text, required | events name it |
| `time` | number, required | Unix time, seconds |
| `items` | list of texts, required | what was shown, in order; empty when nothing was found |
| `query` | text | normalised |
| `share` | number | the arm's share when it was assigned |
| `history_items` | integer | items that were known of the user before this search |
| `model_version`, `index_version` | text | the generation that answered |
| `simulated` | boolean | made up, not seen |

**Events**, one for each click or order: `request_id`, `item_id`, `kind` (`click` or `order`),
`time` required, `simulated`. An event counts for the search whose `request_id` it names. Events of
kind `impression` are passed over: what was shown is in the exposures.

Unknown fields are ignored. A row that lacks what is required is left out and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from index.errors import ConfigError, DataError
from index.importers.records import SUFFIXES, BadRow, SourceRow, read_rows

CLICK, ORDER = "click", "order"
IMPRESSION = "impression"
NO_EXPERIMENT, ONLY_ARM = "", "champion"
"""Of a search that takes part in none."""
SIMULATED_USER = "simulated-"
"""Users whose id begins so are made up, and so is what they do."""
KINDS = ("jsonl", "parquet")
_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class Exposure:
    """One answered search; see the table above."""

    experiment: str
    arm: str
    unit: str
    request_id: str
    time: float
    items: tuple[str, ...]
    query: str = ""
    share: float | None = None
    history_items: int | None = None
    model_version: str = ""
    index_version: str = ""
    simulated: bool = False

    def to_json(self) -> dict[str, Any]:
        """The record as it is written; what is not known is left out."""
        pairs = ((name, getattr(self, name)) for name in self.__slots__)
        return {name: value for name, value in pairs if value is not None}


@dataclass(frozen=True, slots=True)
class ShownEvent:
    """A click or an order of an item that was shown."""

    request_id: str
    item_id: str
    kind: str
    time: float
    simulated: bool = False

    def to_json(self) -> dict[str, Any]:
        """The record as it is written."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Rejected:
    """Rows that were left out: reason → count, and where the first of them is."""

    reasons: Counter[str] = field(default_factory=Counter[str])
    first: str = ""

    def add(self, place: str, reason: str) -> None:
        self.reasons[reason] += 1
        self.first = self.first or f"{place}: {reason}"


def read_exposures(path: Path, rejected: Rejected) -> Iterator[Exposure]:
    """Exposures of a file, or of the Parquet files in `exposures/` of a directory, or else in the
    directory itself. Raises DataError when it cannot be read, ConfigError for other kinds."""
    return _read(path, "exposures", _exposure, rejected)


def read_events(path: Path, rejected: Rejected) -> Iterator[ShownEvent]:
    """Clicks and orders of a file, or of `events/` in a directory. Errors as of
    `read_exposures`."""
    return _read(path, "events", _event, rejected)


def kind_of(path: Path) -> str:
    """jsonl or parquet, by the file's name. Raises ConfigError, also where there is no file."""
    for kind in KINDS:
        if path.name.lower().endswith(SUFFIXES[kind]):
            return kind
    if not path.exists():
        raise ConfigError(f"{path}: no such file or directory")
    known = ", ".join(suffix for kind in KINDS for suffix in SUFFIXES[kind])
    raise ConfigError(f"{path}: unknown kind of file; known are {known}")


def _read(
    path: Path,
    folder: str,
    parse: Callable[[Mapping[str, Any]], _Record | None],
    rejected: Rejected,
) -> Iterator[_Record]:
    good = 0
    for row in _rows(path, folder):
        place = f"{row.place.path}, row {row.place.line}"
        if isinstance(row, BadRow):
            rejected.add(place, row.reason)
            continue
        try:
            record = parse(row.values)
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
            rejected.add(place, what)
            continue
        good += 1
        if record is not None:
            yield record
    if rejected.reasons and not good:
        raise DataError(f"no row can be used; the first: {rejected.first}", path=path)


def _rows(path: Path, folder: str) -> Iterator[SourceRow | BadRow]:
    if not path.is_dir():
        yield from read_rows(path, kind_of(path))
        return
    found = path / folder if (path / folder).is_dir() else path
    files = sorted(found.glob("*.parquet"))
    if not files and found == path:
        raise DataError("neither a Parquet file nor an export of events is in here", path=path)
    for file in files:
        yield from read_rows(file, "parquet")


def _exposure(values: Mapping[str, Any]) -> Exposure:
    items = values["items"]
    if not isinstance(items, list) or not all(
        isinstance(one, str) for one in cast(list[Any], items)
    ):
        raise ValueError("field 'items': not a list of texts")
    return Exposure(
        _any_text(values, "experiment"),
        _text(values, "arm"),
        _text(values, "unit"),
        _text(values, "request_id"),
        _number(values, "time"),
        tuple(cast(list[str], items)),
        str(values.get("query") or ""),
        _number(values, "share") if values.get("share") is not None else None,
        int(_number(values, "history_items")) if values.get("history_items") is not None else None,
        str(values.get("model_version") or ""),
        str(values.get("index_version") or ""),
        values.get("simulated") is True,
    )


def _event(values: Mapping[str, Any]) -> ShownEvent | None:
    kind = _text(values, "kind")
    if kind == IMPRESSION:
        return None
    if kind not in (CLICK, ORDER):
        raise ValueError(f"field 'kind': {kind!r} is neither click nor order")
    return ShownEvent(
        _text(values, "request_id"),
        _text(values, "item_id"),
        kind,
        _number(values, "time"),
        values.get("simulated") is True,
    )


def _text(values: Mapping[str, Any], name: str) -> str:
    value = _any_text(values, name)
    if not value:
        raise ValueError(f"field {name!r}: not a text")
    return value


def _any_text(values: Mapping[str, Any], name: str) -> str:
    value = values[name]
    if not isinstance(value, str):
        raise ValueError(f"field {name!r}: not a text")
    return value


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"field {name!r}: not a number")
    return float(value)
