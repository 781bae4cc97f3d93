"""Segments: parts of the pages or of the shown items, each compared by itself.

| segment | values | from |
|---|---|---|
| `query` | head, middle, tail: by frequency, each a third of the pages | exposures |
| `user` | items known before the first page: new 0, light 1–4, active 5 or more | exposures |
| `item` | cold (popularity 0, or the less popular half), hot (the top tenth), warm | item table |
| `category` | first level; the ten most shown | item table |

What defines a segment must not depend on the arm: popularity and history are those from before the
experiment, and query frequencies count all arms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError
from index.importers.records import SUFFIXES, SourceRow, read_rows
from server.experiment.outcomes import UNKNOWN, Bools, Outcomes

ACTIVE_FROM = 5
COLD_SHARE = 0.5
HOT_SHARE = 0.1
CATEGORIES = 10


class ItemFact(NamedTuple):
    """What the item table says. `popularity`: from before the experiment."""

    category: str
    popularity: float


@dataclass(frozen=True, slots=True)
class Segment:
    """One part. `pages` (P,) or `shown` (S,) says what belongs to it; the other is None."""

    kind: str
    value: str
    pages: Bools | None = None
    shown: Bools | None = None


def read_items(path: Path) -> dict[str, ItemFact]:
    """Category and popularity by item id, of a dataset directory or an item file.

    Raises DataError when it cannot be read or names no item.
    """
    file = path / "items.parquet" if path.is_dir() else path
    kinds = (kind for kind, suffixes in SUFFIXES.items() if file.name.lower().endswith(suffixes))
    kind = next(kinds, None)
    if kind is None or not file.is_file():
        raise DataError("no dataset directory and no item file", path=path)
    facts: dict[str, ItemFact] = {}
    columns = ("item_id", "category", "popularity")
    for row in read_rows(file, kind, columns=columns):
        if isinstance(row, SourceRow) and row.values.get("item_id"):
            facts[str(row.values["item_id"])] = _fact(row.values)
    if not facts:
        raise DataError("names no item_id", path=file)
    return facts


def segments_of(outcomes: Outcomes, facts: Mapping[str, ItemFact] | None) -> Iterator[Segment]:
    """All segments that the data allows, in the table's order."""
    yield from _by_query(outcomes)
    yield from _by_user(outcomes)
    if facts:
        yield from _by_item(outcomes, facts)
        yield from _by_category(outcomes, facts)


def _by_query(outcomes: Outcomes) -> Iterator[Segment]:
    """Equally frequent queries go to the same third: the one that holds their middle."""
    if len(outcomes.queries) < 3:
        return
    counts = np.bincount(outcomes.page_query, minlength=len(outcomes.queries))
    frequencies, members = np.unique(counts, return_counts=True)
    pages = (frequencies * members)[::-1]
    middles = (np.cumsum(pages) - pages / 2) / max(pages.sum(), 1)
    thirds = np.minimum(middles * 3, 2).astype(int)
    third_of = dict(zip(frequencies[::-1].tolist(), thirds.tolist(), strict=True))
    third = np.asarray([third_of[count] for count in counts.tolist()])[outcomes.page_query]
    for number, value in enumerate(("head", "middle", "tail")):
        yield Segment("query", value, pages=third == number)


def _by_user(outcomes: Outcomes) -> Iterator[Segment]:
    history = outcomes.unit_history[outcomes.page_unit]
    if (history == UNKNOWN).all():
        return
    yield Segment("user", "new", pages=history == 0)
    yield Segment("user", "light", pages=(history > 0) & (history < ACTIVE_FROM))
    yield Segment("user", "active", pages=history >= ACTIVE_FROM)


def _by_item(outcomes: Outcomes, facts: Mapping[str, ItemFact]) -> Iterator[Segment]:
    """Bounds are quantiles over the whole table, so that they do not depend on what was shown."""
    known = np.asarray([fact.popularity for fact in facts.values()])
    cold, hot = np.quantile(known, (COLD_SHARE, 1 - HOT_SHARE))
    popularity = np.asarray(
        [facts[item].popularity if item in facts else np.nan for item in outcomes.items]
    )[outcomes.shown_item]
    is_cold = (popularity <= 0) | (popularity < cold)
    is_hot = ~is_cold & (popularity >= hot)
    yield Segment("item", "cold", shown=is_cold)
    yield Segment("item", "warm", shown=~is_cold & ~is_hot & ~np.isnan(popularity))
    yield Segment("item", "hot", shown=is_hot)


def _by_category(outcomes: Outcomes, facts: Mapping[str, ItemFact]) -> Iterator[Segment]:
    names = [facts[item].category if item in facts else "" for item in outcomes.items]
    shown_of = np.bincount(outcomes.shown_item, minlength=len(names)).tolist()
    shown: Counter[str] = Counter()
    for name, count in zip(names, shown_of, strict=True):
        if name:
            shown[name] += count
    of_item: NDArray[Any] = np.asarray(names, dtype=object)[outcomes.shown_item]
    for name, _ in shown.most_common(CATEGORIES):
        yield Segment("category", name, shown=cast(Bools, of_item == name))


def _fact(values: Mapping[str, Any]) -> ItemFact:
    category = values.get("category")
    first = cast(list[Any], category)[0] if isinstance(category, list) and category else category
    try:
        popularity = float(values.get("popularity") or 0.0)
    except (TypeError, ValueError):
        popularity = 0.0
    return ItemFact(str(first or ""), popularity)
