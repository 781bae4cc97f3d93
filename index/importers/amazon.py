"""Amazon purchase sequences: items, and orders with derived queries.

SOURCE is the folder with amazon_<Category>_items.json.gz and amazon_<Category>_sequences.jsonl.gz.
All categories of the folder are imported, or those a mapping file lists under `categories`; ids of
items and users carry the category ("Office_Products:12"), because each category counts from 0.

There are no queries in the source. Each purchase gets one that is derived from its item's title and
brand; the manifest says so. An item has several (`derive_queries`). All of them, of all items, are
split with their respellings (SHARES), and a purchase draws among those of its item whose split is
the purchase's mark, by a hash of user and step: no query of a test purchase is ever one of a
training purchase. A purchase whose item has none on its side has no query and counts as history.
A sequence is ordered but not dated: `time` is the step, so it orders a user's events and compares
no two users. Each step keeps the source's split mark in the events' `split` column.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from index.errors import ConfigError, DataError
from index.importers.cleaning import clean_text
from index.importers.id_set import hash_of
from index.importers.intake import SPLIT_OF_NAME, Intake
from index.importers.mapping import Mapping
from index.importers.records import BadRow, Place, SourceRow, open_bytes, read_rows
from index.splits import SPLIT_NAMES, cluster_queries, split_queries
from index.text import normalise

# More held out than usual: few test purchases should remain without a query of their own.
SHARES = (0.6, 0.15, 0.25)
_PREFIX = "amazon_"
_ITEMS = "_items.json.gz"
_SEQUENCES = "_sequences.jsonl.gz"
_HEAD_END = re.compile(r"[,;:(\[|]| [-–—] | (?:for|with|by|from|in|of) ")
_WORD = re.compile(r"[^\W\d_](?:[^\W_]|['’-](?=[^\W\d_]))+")
_FILLERS = frozenset(("and", "the", "inch", "inches", "pack", "count", "set", "size"))


@dataclass(frozen=True, slots=True)
class _Purchase:
    """One step of a user's sequence, with the query that it may get."""

    place: Place
    query: str | None
    values: dict[str, Any]


def import_amazon(source: Path, intake: Intake, mapping: Mapping) -> None:
    """Hand items and orders to the intake, category by category.

    Raises ConfigError when the folder has no such files or lacks a category of the mapping.
    """
    categories = _categories(source, mapping.categories)
    queries: dict[str, dict[int, list[str]]] = {}
    for category in categories:
        queries[category] = _take_items(source / f"{_PREFIX}{category}{_ITEMS}", category, intake)
    every = (query for found in queries.values() for forms in found.values() for query in forms)
    split_of = split_queries(every, shares=SHARES)
    purchases: list[_Purchase] = []
    for category in categories:
        path = source / f"{_PREFIX}{category}{_SEQUENCES}"
        for row in read_rows(path, "jsonl"):
            if isinstance(row, BadRow):
                intake.reject("events", row)
            else:
                purchases += _purchases(row, category, queries[category], split_of, intake)
    asked = _apart({p.query: split_of[p.query] for p in purchases if p.query is not None})
    intake.set_splits(asked)
    for purchase in purchases:
        query = purchase.query if purchase.query in asked else None
        intake.take("events", purchase.place, {**purchase.values, "query": query})
    intake.note("queries are derived from title and brand of the bought item")
    intake.note("time is the step in the user's sequence; users' times cannot be compared")


def derive_queries(title: str, brand: str | None) -> list[str]:
    """Short queries for an item, distinct: the last two to four words of the title's head, its
    first and last, and the last one to three behind the brand.

    "Stanley 1/2-Inch Leg Length Staples, Steel (1000 Count)" → "leg length staples", "length
    staples", "leg staples", "stanley leg length staples", "stanley length staples", …
    """
    maker = normalise(brand or "")
    brand_words = set(_WORD.findall(maker))
    head = _HEAD_END.split(normalise(title), maxsplit=1)[0]
    found = [w for w in _WORD.findall(head) if w not in brand_words and w not in _FILLERS]
    if not found:
        found = normalise(title).split()
    forms = [found[-count:] for count in (3, 2, 4)]
    forms.append([found[0], found[-1]] if len(found) > 1 else found)
    forms += [[maker, *found[-count:]] for count in (2, 1, 3)] if maker else []
    return list(dict.fromkeys(" ".join(form) for form in forms))


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


def _take_items(path: Path, category: str, intake: Intake) -> dict[int, list[str]]:
    """Hand over the items; returns item number → derived queries. The file is one JSON document."""
    with open_bytes(path) as file:
        try:
            items = orjson.loads(file.read())
        except orjson.JSONDecodeError as error:
            raise DataError(f"is not valid JSON: {error}", path=path) from None
    if not isinstance(items, dict):
        raise DataError("must be one object of items by number", path=path)
    queries: dict[int, list[str]] = {}
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
            queries[int(number)] = derive_queries(title, brand or None)
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


def _purchases(
    row: SourceRow,
    category: str,
    queries: dict[int, list[str]],
    split_of: dict[str, str],
    intake: Intake,
) -> list[_Purchase]:
    """The purchases of one user's line."""
    user, items, marks = (row.values.get(name) for name in ("user", "items", "split"))
    if not isinstance(items, list) or not isinstance(marks, list) or not user:
        intake.reject("events", BadRow(row.place, "not a sequence"))
        return []
    found: list[_Purchase] = []
    for step, (item, mark) in enumerate(_steps(items, marks)):
        side = SPLIT_OF_NAME.get(str(mark or "train"))
        forms = queries.get(item, []) if isinstance(item, int) else []
        fitting = [form for form in forms if split_of[form] == side]
        session = f"{category}:{user}:{step}"
        query = fitting[hash_of(session) % len(fitting)] if fitting else None
        values = {
            "session_id": session,
            "user_id": f"{category}:{user}",
            "item_id": f"{category}:{item}",
            "kind": "order",
            "time": step,
            "split": mark,
        }
        found.append(_Purchase(row.place, query, values))
    return found


def _apart(split_of: dict[str, str]) -> dict[str, str]:
    """Without the queries that are respellings of one that is held out further.

    Clusters of the queries that are asked can be larger than those of all that might have been.
    """
    kept = dict(split_of)
    while True:
        away: list[str] = []
        for cluster in cluster_queries(sorted(kept)):
            farthest = max(SPLIT_NAMES.index(kept[query]) for query in cluster)
            away += (query for query in cluster if SPLIT_NAMES.index(kept[query]) < farthest)
        if not away:
            return kept
        for query in away:
            del kept[query]


def _steps(items: list[Any], marks: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Missing marks are None, so that a short list of marks costs no purchases."""
    return zip(items, marks + [None] * (len(items) - len(marks)), strict=False)
