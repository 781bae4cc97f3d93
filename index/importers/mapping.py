"""The mapping file of `onesearch data import`: which source column feeds which field.

TOML or JSON. Fields that are not named take the column of their own name where there is one.
```toml
delimiter = ";"                 # CSV only; default: comma, tab for .tsv
categories = ["Office_Products"]  # amazon only; default: all in the folder

[items]
item_id = "sku"
title = "product_name"
category = "path"

[items.separators]              # of lists in one cell; default "|"
category = ">"

[items.attributes]              # further columns to keep, under any name
size = "size_label"

[judgments]
query = "search_term"
grade = "relevance"
```
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson

from index.dataset import EVENTS, ITEMS, JUDGMENTS, USERS
from index.errors import ConfigError

DEFAULT_SEPARATOR = "|"
FIELDS: dict[str, tuple[str, ...]] = {
    "items": tuple(ITEMS.names),
    "users": tuple(USERS.names),
    "judgments": tuple(JUDGMENTS.names),
    "events": tuple(EVENTS.names),
}
REQUIRED: dict[str, tuple[str, ...]] = {
    "items": ("item_id", "title"),
    "users": ("user_id",),
    "judgments": ("query", "item_id", "grade"),
    "events": ("session_id", "item_id", "kind", "time"),
}
_OPTIONS = ("delimiter", "categories")


@dataclass(frozen=True, slots=True)
class TableMapping:
    """For one table: field → column, attribute name → column, field → list separator."""

    columns: dict[str, str] = field(default_factory=dict[str, str])
    attributes: dict[str, str] = field(default_factory=dict[str, str])
    separators: dict[str, str] = field(default_factory=dict[str, str])

    def separator(self, name: str) -> str:
        return self.separators.get(name, DEFAULT_SEPARATOR)

    def column(self, name: str) -> str:
        return self.columns.get(name, name)


@dataclass(frozen=True, slots=True)
class Mapping:
    """A whole mapping file."""

    tables: dict[str, TableMapping] = field(default_factory=dict[str, TableMapping])
    delimiter: str | None = None
    categories: tuple[str, ...] = ()

    def table(self, name: str) -> TableMapping:
        return self.tables.get(name, TableMapping())


def load_mapping(path: Path) -> Mapping:
    """Read a mapping file. Raises ConfigError naming the entry that is wrong."""
    try:
        data = path.read_bytes()
        raw: Any = orjson.loads(data) if path.suffix == ".json" else tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"mapping file {path}: {error.strerror}") from None
    except (orjson.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"mapping file {path} is not valid: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"mapping file {path} must hold tables like [items]")
    return parse_mapping(cast(dict[str, Any], raw), str(path))


def parse_mapping(raw: MappingType[str, Any], name: str = "mapping") -> Mapping:
    """A mapping from plain data. Raises ConfigError naming the entry that is wrong."""
    known = (*FIELDS, *_OPTIONS)
    for key in raw:
        if key not in known:
            raise ConfigError(f"{name}: unknown entry {key!r}; known are {', '.join(known)}")
    delimiter = raw.get("delimiter")
    if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1):
        raise ConfigError(f"{name}: delimiter must be one character, not {delimiter!r}")
    categories = raw.get("categories", [])
    if not isinstance(categories, list) or not all(
        isinstance(category, str) for category in cast(list[object], categories)
    ):
        raise ConfigError(f"{name}: categories must be a list of names")
    tables = {table: _parse_table(raw[table], table, name) for table in FIELDS if table in raw}
    return Mapping(tables, delimiter, tuple(cast(list[str], categories)))


def _parse_table(raw: object, table: str, name: str) -> TableMapping:
    place = f"{name}: [{table}]"
    if not isinstance(raw, dict):
        raise ConfigError(f"{place} must be a table of field = column")
    entries = cast(dict[str, object], raw)
    columns = {k: v for k, v in entries.items() if not isinstance(v, dict)}
    attributes = _texts(entries.get("attributes", {}), f"{name}: [{table}.attributes]")
    separators = _texts(entries.get("separators", {}), f"{name}: [{table}.separators]")
    for key, value in entries.items():
        if isinstance(value, dict) and key not in ("attributes", "separators"):
            raise ConfigError(f"{place}: unknown table {key!r}")
    if attributes and "attributes" not in FIELDS[table]:
        raise ConfigError(f"{place}: {table} have no attributes")
    for key in (*columns, *separators):
        if key not in FIELDS[table]:
            fields = ", ".join(FIELDS[table])
            raise ConfigError(f"{place}: unknown field {key!r}; fields are {fields}")
    return TableMapping(_texts(columns, place), attributes, separators)


def _texts(raw: object, place: str) -> dict[str, str]:
    if not isinstance(raw, dict):
        return {}
    found = cast(dict[str, object], raw)
    for key, value in found.items():
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{place}: {key} must be text, not {value!r}")
    return cast(dict[str, str], found)
