"""Keywords of queries, as training reads them: a file made by `onesearch keywords export` or
`onesearch train keywords`.

Parquet with the columns `query`, `terms` and, where it has them, `user_id` (null: for everybody)
and `item_id` (the item that a pseudo-query was derived from); or JSON lines with the same fields.
Later rows of a query replace earlier ones. Queries are looked up in normal form. Keywords of a user
stand before those for everybody.
"""

# pyarrow has no types of its own.
# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from index.errors import DataError
from index.text import normalise

Terms = tuple[str, ...]
_FIELDS = ("query", "terms", "user_id", "item_id")


@dataclass(frozen=True, slots=True, eq=False)
class KeywordTable:
    """`generic`: query → terms; `personal`: (query, user id) → terms; both most important first.
    `derived`: (query, item id) of pseudo-queries. `version`: digest of the file."""

    generic: Mapping[str, Terms]
    personal: Mapping[tuple[str, str], Terms]
    derived: tuple[tuple[str, str], ...]
    version: str

    def of(self, query: str, user: str | None = None) -> Terms:
        """The user's own terms for the query, else everybody's, else none."""
        key = normalise(query)
        own = self.personal.get((key, user)) if user is not None else None
        return own if own is not None else self.generic.get(key, ())


def read_keywords(path: Path) -> KeywordTable:
    """Read a keyword file. Raises DataError naming the file, and the row of a wrong value."""
    generic: dict[str, Terms] = {}
    personal: dict[tuple[str, str], Terms] = {}
    derived: dict[tuple[str, str], None] = {}
    try:
        raw = path.read_bytes()
        rows = _json_rows(raw, path) if path.suffix == ".jsonl" else _parquet_rows(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"keywords cannot be read: {error}", path=path) from None
    for number, row in enumerate(rows, start=1):
        query, terms = row.get("query"), row.get("terms")
        if not isinstance(query, str) or not _are_texts(terms):
            raise DataError(
                "keywords need `query`, a text, and `terms`, a list of texts", path=path, row=number
            )
        key, found = normalise(query), tuple(term for term in cast(list[str], terms) if term)
        user, item = row.get("user_id"), row.get("item_id")
        if user is None:
            generic[key] = found
        else:
            personal[key, str(user)] = found
        if item is not None:
            derived[query, str(item)] = None
    version = hashlib.sha256(raw).hexdigest()[:12]
    return KeywordTable(generic, personal, tuple(derived), version)


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    names = pq.read_schema(path).names
    return pq.read_table(path, columns=[name for name in _FIELDS if name in names]).to_pylist()


def _json_rows(raw: bytes, path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(raw.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"not JSON: {error}", path=path, row=number) from None
        if not isinstance(row, dict):
            raise DataError("not a JSON object", path=path, row=number)
        rows.append(cast(dict[str, Any], row))
    return rows


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(term, str) for term in cast(list[object], value)
    )
