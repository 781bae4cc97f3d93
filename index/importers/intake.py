"""Where every importer hands its rows: cleaning, duplicates, references, rejections, counts.

An importer reads its format and calls `take(table, place, values)` with raw values under canonical
field names, items first. The intake decides. Memory grows with 16 bytes an id and with the distinct
queries (which the splits need), not with the rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from index.dataset import EVENT_KINDS, REJECTED, TableWriter, write_splits
from index.errors import DataError
from index.importers import cleaning
from index.importers.cleaning import FieldError
from index.importers.id_set import IdSet
from index.importers.mapping import TableMapping
from index.importers.records import BadRow, Place
from index.splits import SPLIT_NAMES, split_queries

PROGRESS_ROWS = 5_000
MAX_REJECTED_VALUE_CHARACTERS = 200

Progress = Callable[[str, int], None]
"""Called with (table, rows read so far) every PROGRESS_ROWS rows and at the end."""

_KIND_NAMES = {
    "impression": ("impression", "impressed", "view", "show", "shown"),
    "click": ("click", "clicked"),
    "order": ("order", "ordered", "purchase", "purchased", "buy", "bought"),
}
_KIND_OF_NAME = {name: kind for kind, names in _KIND_NAMES.items() for name in names}
assert tuple(_KIND_NAMES) == EVENT_KINDS
SPLIT_OF_NAME = {name: name for name in SPLIT_NAMES} | {"valid": "validation", "dev": "validation"}


@dataclass(frozen=True, slots=True)
class Summary:
    """What an import did. Counts are rows; `rejected` and `warnings` are table → reason → count."""

    rows: dict[str, int]
    rejected: dict[str, dict[str, int]]
    warnings: dict[str, dict[str, int]]
    splits: dict[str, int]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "rejected": self.rejected,
            "warnings": self.warnings,
            "splits": self.splits,
            "notes": self.notes,
        }


class Intake:
    """Writes the tables of one dataset. Use as a context manager, call `finish` inside it.

    With `strict` the first bad row raises DataError (path, row, field).
    """

    def __init__(
        self, directory: Path, *, strict: bool = False, progress: Progress | None = None
    ) -> None:
        self._directory = directory
        self._strict = strict
        self._progress = progress
        self._stack = ExitStack()
        self._writers: dict[str, TableWriter] = {}
        self._items = IdSet()
        self._keys: dict[str, IdSet] = {"users": IdSet(), "judgments": IdSet()}
        self._queries: dict[str, None] = {}
        self._splits: Mapping[str, str] | None = None
        self._read: Counter[str] = Counter()
        self._rejected: dict[str, Counter[str]] = defaultdict(Counter)
        self._warnings: dict[str, Counter[str]] = defaultdict(Counter)
        self._notes: list[str] = []
        self._clean = {
            "items": self._clean_item,
            "users": self._clean_user,
            "judgments": self._clean_judgment,
            "events": self._clean_event,
        }

    def __enter__(self) -> Intake:
        for table in self._clean:
            writer = TableWriter(self._directory, table)
            self._writers[table] = self._stack.enter_context(writer)
        self._log = self._stack.enter_context((self._directory / REJECTED).open("wb"))
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def take(
        self,
        table: str,
        place: Place,
        values: Mapping[str, Any],
        mapping: TableMapping | None = None,
    ) -> bool:
        """Clean and write one row of raw values; False when it was rejected."""
        self._count(table)
        try:
            row = self._clean[table](values, mapping or TableMapping())
        except FieldError as error:
            self._reject(table, place, error.reason, error.field, error.value)
            return False
        self._writers[table].write(row)
        return True

    def reject(self, table: str, bad: BadRow) -> None:
        """Record a row that could not even be read."""
        self._count(table)
        self._reject(table, bad.place, bad.reason, None, bad.value)

    def note(self, text: str) -> None:
        """Add a sentence for the summary."""
        self._notes.append(text)

    def set_splits(self, splits: Mapping[str, str]) -> None:
        """The split of every query that will come, where the importer has split them itself."""
        self._splits = splits

    def finish(self) -> Summary:
        """Write the splits, close every file and count."""
        splits = split_queries(self._queries) if self._splits is None else self._splits
        splits = {query: splits[query] for query in self._queries}
        write_splits(self._directory, splits)
        if self._progress is not None:
            for table, count in self._read.items():
                self._progress(table, count)
        rows = {table: writer.count for table, writer in self._writers.items()}
        if not rows["items"]:
            reasons = dict(self._rejected["items"])
            raise DataError(f"no item could be imported; rejected rows by reason: {reasons}")
        self._stack.close()
        sizes = Counter(splits.values())
        return Summary(
            rows,
            _plain(self._rejected),
            _plain(self._warnings),
            {name: sizes[name] for name in SPLIT_NAMES},
            self._notes,
        )

    def _count(self, table: str) -> None:
        self._read[table] += 1
        if self._progress is not None and self._read[table] % PROGRESS_ROWS == 0:
            self._progress(table, self._read[table])

    def _reject(
        self, table: str, place: Place, reason: str, field: str | None, value: object
    ) -> None:
        if self._strict:
            raise DataError(reason, path=place.path, row=place.line, field=field)
        self._rejected[table][f"{field}: {reason}" if field else reason] += 1
        line = {
            "table": table,
            "path": place.path.name,
            "line": place.line,
            "field": field,
            "reason": reason,
            "value": _shown(value),
        }
        self._log.write(orjson.dumps(line) + b"\n")

    def _warner(self, table: str) -> cleaning.Warn:
        counts = self._warnings[table]

        def warn(field: str, reason: str) -> None:
            counts[f"{field}: {reason}"] += 1

        return warn

    def _clean_item(self, raw: Mapping[str, Any], mapping: TableMapping) -> dict[str, Any]:
        warn = self._warner("items")
        item_id = cleaning.read_id("item_id", raw.get("item_id"))
        if item_id in self._items:
            raise FieldError("item_id", "duplicate", item_id)
        title = cleaning.read_title("title", raw.get("title"), warn)
        row: dict[str, Any] = {"item_id": item_id, "title": title}
        for field, limit in (
            ("description", cleaning.MAX_DESCRIPTION_CHARACTERS),
            ("brand", cleaning.MAX_VALUE_CHARACTERS),
        ):
            row[field] = cleaning.read_optional_text(field, raw.get(field), limit, warn)
        for field in ("category", "color", "material", "audience", "function"):
            separator = mapping.separator(field)
            row[field] = cleaning.read_values(field, raw.get(field), separator, warn)
        attributes: dict[str, list[str]] = {}
        given = cleaning.read_attributes("attributes", raw.get("attributes"), warn)
        for name, value in given.items():
            values = cleaning.read_values(name, value, mapping.separator("attributes"), warn)
            if values:
                attributes[cleaning.clean_text(name)] = values
        row["attributes"] = attributes or None
        row["price"] = cleaning.read_quantity("price", raw.get("price"), warn)
        row["stock"] = cleaning.read_count("stock", raw.get("stock"), warn)
        row["popularity"] = cleaning.read_quantity("popularity", raw.get("popularity"), warn)
        self._items.add(item_id)
        return row

    def _clean_user(self, raw: Mapping[str, Any], _: TableMapping) -> dict[str, Any]:
        warn = self._warner("users")
        user_id = cleaning.read_id("user_id", raw.get("user_id"))
        if not self._keys["users"].add(user_id):
            raise FieldError("user_id", "duplicate", user_id)
        attributes: dict[str, str] = {}
        given = cleaning.read_attributes("attributes", raw.get("attributes"), warn)
        for name, value in given.items():
            limit = cleaning.MAX_VALUE_CHARACTERS
            text = cleaning.read_optional_text(name, value, limit, warn)
            if text is not None:
                attributes[cleaning.clean_text(name)] = text
        return {"user_id": user_id, "attributes": attributes or None}

    def _clean_judgment(self, raw: Mapping[str, Any], _: TableMapping) -> dict[str, Any]:
        query = cleaning.read_query("query", raw.get("query"))
        if query is None:
            raise FieldError("query", "empty", raw.get("query"))
        item_id = self._known_item(raw)
        grade = cleaning.read_required_number("grade", raw.get("grade"))
        if not self._keys["judgments"].add(f"{query}\0{item_id}"):
            raise FieldError("query", "duplicate", f"{query} → {item_id}")
        self._queries[query] = None
        return {"query": query, "item_id": item_id, "grade": grade}

    def _clean_event(self, raw: Mapping[str, Any], _: TableMapping) -> dict[str, Any]:
        warn = self._warner("events")
        session_id = cleaning.read_id("session_id", raw.get("session_id"))
        user_id = cleaning.read_optional_id("user_id", raw.get("user_id"))
        query = cleaning.read_query("query", raw.get("query"))
        item_id = self._known_item(raw)
        kind = _KIND_OF_NAME.get(str(raw.get("kind") or "").strip().lower())
        if kind is None:
            given = raw.get("kind")
            raise FieldError("kind", "unknown kind" if given else "missing", given)
        time = cleaning.read_time("time", raw.get("time"))
        mark = str(raw.get("split") or "").strip().lower()
        if mark and mark not in SPLIT_OF_NAME:
            raise FieldError("split", "unknown split", mark)
        if query is not None:
            self._queries[query] = None
        return {
            "session_id": session_id,
            "user_id": user_id,
            "query": query,
            "item_id": item_id,
            "kind": kind,
            "position": cleaning.read_count("position", raw.get("position"), warn, least=1),
            "time": time,
            "split": SPLIT_OF_NAME.get(mark),
        }

    def _known_item(self, raw: Mapping[str, Any]) -> str:
        item_id = cleaning.read_id("item_id", raw.get("item_id"))
        if item_id not in self._items:
            raise FieldError("item_id", "unknown item", item_id)
        return item_id


def _plain(counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {table: dict(sorted(c.items())) for table, c in sorted(counts.items()) if c}


def _shown(value: object) -> str | None:
    if value is None:
        return None
    return str(value).encode("utf-8", "replace").decode()[:MAX_REJECTED_VALUE_CHARACTERS]
