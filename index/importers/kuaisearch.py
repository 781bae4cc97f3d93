"""KuaiSearch: Chinese items, users and search sessions; graded relevance by item title.

SOURCE is the folder with items.jsonl, users.jsonl, recall.jsonl, relevance.jsonl (or `.gz`).
- A recall session gives one impression for each shown item (position: its place in the list), and
  clicks and orders at the same time with the same position. Shown items that the catalogue lacks
  are rejected as "unknown item"; the demonstration excerpt lacks nearly all of them.
- `relevance.jsonl` names items by title. A row becomes a judgment where an item has that very
  title (the first one, if several); the others are rejected.
- A user's history is what the events of earlier sessions say. The source's `recently_*` fields
  hold items from the future and are never read; `rank.jsonl` repeats the sessions and is skipped.
- `time` is the source's time_index; brands and categories that say "unknown" are null.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from index.errors import ConfigError
from index.importers.cleaning import clean_text
from index.importers.id_set import hash_of
from index.importers.intake import Intake
from index.importers.mapping import Mapping
from index.importers.records import BadRow, SourceRow, read_rows
from index.text import normalise

_UNKNOWN = frozenset(("unknown", "无品牌", "其他/other", "其他/qita", "其他", ""))
_USER_FIELDS = ("gender", "age_bucket", "fre_country", "fre_province", "fre_city")
_LEVELS = ("category_level1_name", "category_level2_name", "category_level3_name")


def import_kuaisearch(source: Path, intake: Intake, _: Mapping) -> None:
    """Hand items, users, events and judgments to the intake.

    Raises ConfigError without an items file, DataError for a file that cannot be read.
    """
    items = _find(source, "items")
    if items is None:
        raise ConfigError(f"{source} has no items.jsonl")
    relevance = _find(source, "relevance")
    item_of_title = _judged_titles(relevance) if relevance else {}
    for row in read_rows(items, "jsonl"):
        _take_item(row, item_of_title, intake)
    users = _find(source, "users")
    for row in read_rows(users, "jsonl") if users else ():
        _take_user(row, intake)
    recall = _find(source, "recall")
    for row in read_rows(recall, "jsonl") if recall else ():
        _take_session(row, intake)
    for row in read_rows(relevance, "jsonl") if relevance else ():
        _take_judgment(row, item_of_title, intake)
    intake.note("judgments are relevance rows whose title is an item's title; others are rejected")
    intake.note(
        "histories come from earlier sessions; recently_* fields and rank.jsonl are not read"
    )


def _find(source: Path, name: str) -> Path | None:
    candidates = (source / f"{name}{suffix}" for suffix in (".jsonl", ".jsonl.gz"))
    return next(filter(Path.is_file, candidates), None)


def _judged_titles(path: Path) -> dict[int, str | None]:
    """Hashes of the titles that relevance rows name, for the ids to be filled in."""
    found: dict[int, str | None] = {}
    for row in read_rows(path, "jsonl"):
        if isinstance(row, SourceRow):
            found[_title_key(row.values.get("item_title"))] = None
    return found


def _title_key(title: object) -> int:
    return hash_of(normalise(clean_text(str(title))))


def _take_item(
    row: SourceRow | BadRow, item_of_title: dict[int, str | None], intake: Intake
) -> None:
    if isinstance(row, BadRow):
        intake.reject("items", row)
        return
    raw = row.values
    values = {
        "item_id": raw.get("item_id"),
        "title": raw.get("item_title"),
        "brand": _known(raw.get("brand_name")),
        "category": [name for level in _LEVELS if (name := _known(raw.get(level)))],
        "attributes": {"seller": _known(raw.get("seller_name"))},
    }
    if intake.take("items", row.place, values):
        key = _title_key(values["title"])
        if key in item_of_title and item_of_title[key] is None:
            item_of_title[key] = str(values["item_id"]).strip()


def _take_user(row: SourceRow | BadRow, intake: Intake) -> None:
    if isinstance(row, BadRow):
        intake.reject("users", row)
        return
    attributes = {name: _known(row.values.get(name)) for name in _USER_FIELDS}
    values = {"user_id": row.values.get("user_id"), "attributes": attributes}
    intake.take("users", row.place, values)


def _take_session(row: SourceRow | BadRow, intake: Intake) -> None:
    if isinstance(row, BadRow):
        intake.reject("events", row)
        return
    raw = row.values
    shown = raw.get("impressed_item_ids")
    if not isinstance(shown, list):
        intake.reject("events", BadRow(row.place, "no impressed_item_ids"))
        return
    position_of: dict[Any, int] = {}
    for position, item in enumerate(cast(list[Any], shown), 1):
        position_of.setdefault(_item_key(item), position)
    for kind, items in (
        ("impression", shown),
        ("click", raw.get("clicked_item_ids")),
        ("order", raw.get("purchased_item_ids")),
    ):
        for item in cast(list[Any], items) if isinstance(items, list) else ():
            values = {
                "session_id": raw.get("session_id"),
                "user_id": raw.get("user_id"),
                "query": raw.get("query"),
                "item_id": item,
                "kind": kind,
                "position": position_of.get(_item_key(item)),
                "time": raw.get("time_index"),
                "split": raw.get("split"),
            }
            intake.take("events", row.place, values)


def _take_judgment(
    row: SourceRow | BadRow, item_of_title: dict[int, str | None], intake: Intake
) -> None:
    if isinstance(row, BadRow):
        intake.reject("judgments", row)
        return
    title = row.values.get("item_title")
    item_id = item_of_title.get(_title_key(title))
    if item_id is None:
        intake.reject("judgments", BadRow(row.place, "no item has this title", str(title)))
        return
    values = {
        "query": row.values.get("query"),
        "item_id": item_id,
        "grade": row.values.get("score"),
    }
    intake.take("judgments", row.place, values)


def _item_key(item: object) -> object:
    """Lists of ids may hold anything; only ids can be looked up."""
    return item if isinstance(item, int | str) else None


def _known(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in _UNKNOWN else value
