"""Amazon purchase sequences: items, and orders with derived queries.

SOURCE is the folder with amazon_<Category>_items.json.gz and amazon_<Category>_sequences.jsonl.gz.
All categories of the folder are imported, or those a mapping file lists under `categories`; ids of
items and users carry the category ("Office_Products:12"), because each category counts from 0.

There are no queries in the source. Each purchase gets one that is derived from its item's title and
brand, the same for every purchase of the item (`derive_query`); the manifest says so. A sequence is
ordered but not dated: `time` is the step, so it orders a user's events and compares no two users.
Each step keeps the source's split mark in the events' `split` column.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import orjson

from index.errors import ConfigError, DataError
from index.importers.cleaning import clean_text
from index.importers.id_set import hash_of
from index.importers.intake import Intake
from index.importers.mapping import Mapping
from index.importers.records import BadRow, Place, SourceRow, open_bytes, read_rows
from index.text import normalise

QUERY_WORDS = 3
BRAND_SHARE = 3
_PREFIX = "amazon_"
_ITEMS = "_items.json.gz"
_SEQUENCES = "_sequences.jsonl.gz"
_HEAD_END = re.compile(r"[,;:(\[|]| [-–—] | (?:for|with|by|from|in|of) ")
_WORD = re.compile(r"[^\W\d_](?:[^\W_]|['’-](?=[^\W\d_]))+")
_FILLERS = frozenset(("and", "the", "inch", "inches", "pack", "count", "set", "size"))


def import_amazon(source: Path, intake: Intake, mapping: Mapping) -> None:
    """Hand items and orders to the intake, category by category.

    Raises ConfigError when the folder has no such files or lacks a category of the mapping.
    """
    categories = _categories(source, mapping.categories)
    queries: dict[str, dict[int, str]] = {}
    for category in categories:
        queries[category] = _take_items(source / f"{_PREFIX}{category}{_ITEMS}", category, intake)
    for category in categories:
        path = source / f"{_PREFIX}{category}{_SEQUENCES}"
        for row in read_rows(path, "jsonl"):
            if isinstance(row, BadRow):
                intake.reject("events", row)
            else:
                _take_sequence(row, category, queries[category], intake)
    intake.note("queries are derived from title and brand of the bought item")
    intake.note("time is the step in the user's sequence; users' times cannot be compared")


def derive_query(title: str, brand: str | None) -> str:
    """A short query for an item: the last words of the title's head, a third of them with brand.

    "Stanley 1/2-Inch Leg Length Staples, Steel (1000 Count)" → "leg length staples".
    """
    brand_words = set(_WORD.findall(normalise(brand or "")))
    head = _HEAD_END.split(normalise(title), maxsplit=1)[0]
    found = [w for w in _WORD.findall(head) if w not in brand_words and w not in _FILLERS]
    if not found:
        found = normalise(title).split()
    query = " ".join(found[-QUERY_WORDS:])
    if brand and hash_of(f"{brand}\0{title}") % BRAND_SHARE == 0:
        return f"{normalise(brand)} {query}"
    return query


def _categories(source: Path, wanted: tuple[str, ...]) -> list[str]:
    if not source.is_dir():
        raise ConfigError(f"source {source} is no folder")
    there = sorted(
        path.name.removeprefix(_PREFIX).removesuffix(_ITEMS)
        for path in source.glob(f"{_PREFIX}*{_ITEMS}")
    )
    if not there:
        raise ConfigError(f"{source} has no {_PREFIX}<Category>{_ITEMS}")
    for category in wanted:
        if category not in there:
            raise ConfigError(f"{source} has no category {category!r}, only {', '.join(there)}")
    return list(wanted) or there


def _take_items(path: Path, category: str, intake: Intake) -> dict[int, str]:
    """Hand over the items; returns item number → derived query. The file is one JSON document."""
    with open_bytes(path) as file:
        try:
            items = orjson.loads(file.read())
        except orjson.JSONDecodeError as error:
            raise DataError(f"is not valid JSON: {error}", path=path) from None
    if not isinstance(items, dict):
        raise DataError("must be one object of items by number", path=path)
    queries: dict[int, str] = {}
    for line, (number, raw) in enumerate(cast(dict[str, Any], items).items(), 1):
        place = Place(path, line)
        if not isinstance(raw, dict) or not number.isdigit():
            intake.reject("items", BadRow(place, "not an item", number))
            continue
        fields = cast(dict[str, Any], raw)
        values = {
            "item_id": f"{category}:{number}",
            "title": fields.get("title"),
            "brand": fields.get("brand"),
            "description": _description(fields.get("description")),
            "category": [category.replace("_", " ")],
        }
        if intake.take("items", place, values):
            title, brand = clean_text(str(values["title"])), clean_text(str(values["brand"] or ""))
            queries[int(number)] = derive_query(title, brand or None)
    return queries


def _description(raw: object) -> object:
    """Descriptions are Python lists written as text."""
    if not isinstance(raw, str) or not raw.startswith("["):
        return raw
    try:
        parts: object = ast.literal_eval(raw)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return raw
    return " ".join(map(str, cast(list[object], parts))) if isinstance(parts, list) else raw


def _take_sequence(row: SourceRow, category: str, queries: dict[int, str], intake: Intake) -> None:
    user, items, marks = (row.values.get(name) for name in ("user", "items", "split"))
    if not isinstance(items, list) or not isinstance(marks, list) or not user:
        intake.reject("events", BadRow(row.place, "not a sequence"))
        return
    for step, (item, mark) in enumerate(_steps(items, marks)):
        values = {
            "session_id": f"{category}:{user}:{step}",
            "user_id": f"{category}:{user}",
            "query": queries.get(item) if isinstance(item, int) else None,
            "item_id": f"{category}:{item}",
            "kind": "order",
            "time": step,
            "split": mark,
        }
        intake.take("events", row.place, values)


def _steps(items: list[Any], marks: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Missing marks are None, so that a short list of marks costs no purchases."""
    return zip(items, marks + [None] * (len(items) - len(marks)), strict=False)
