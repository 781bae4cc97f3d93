"""What shoppers ask: queries by Zipf's law, histories, filters, from a dataset or a log of queries.

Queries are ranked by how often the log has them; the one of rank r is asked with a probability that
goes with 1 / r^exponent, whatever the log's own counts were. Requests are drawn before the load
starts, so that drawing costs nothing while it runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow.csv as csv
import pyarrow.parquet as parquet

from index.dataset import Dataset
from index.errors import DataError

ZIPF_EXPONENT = 1.0
HISTORY_ITEMS = 5
LIMIT = 10
HISTORY_SHARE, USER_SHARE, FILTER_SHARE = 0.3, 0.2, 0.25
"""Of searches: that bring a history, that name a user, that filter."""
CHANGED_ITEMS = 10
"""Of one request that changes the catalogue."""
NEW_EVERY = 5
"""One in so many changes puts new items; the others change price and stock."""
_PRICE_QUANTILES = (0.25, 0.5, 0.75, 0.9)


class Request(NamedTuple):
    """One request; `kind` names it in reports."""

    kind: str
    method: str
    path: str
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """A shop as its visitors see it. `queries`: most frequent first. `histories`: item ids that a
    user clicked or ordered, oldest first. `prices`: what filters ask for."""

    queries: Sequence[str]
    histories: Sequence[tuple[str, tuple[str, ...]]] = ()
    items: Sequence[str] = ()
    colors: Sequence[str] = ()
    categories: Sequence[str] = ()
    prices: Sequence[float] = ()

    @classmethod
    def of_dataset(cls, path: Path) -> Workload:
        """Queries and histories of a dataset's events; its judgments' queries where it has none.

        Raises DataError where there are no queries, ArtifactError where it cannot be read.
        """
        dataset = Dataset.open(path, verify=False)
        events, items = dataset.events, dataset.items
        counts: Counter[str] = Counter()
        histories: dict[str, list[str]] = {}
        seen = set[tuple[str, str]]()
        for row in events.select(["session_id", "user_id", "query", "item_id", "kind"]).to_pylist():
            query, user = row["query"], row["user_id"]
            if query and (row["session_id"], query) not in seen:
                seen.add((row["session_id"], query))
                counts[query] += 1
            if user and row["kind"] != "impression":
                histories.setdefault(user, []).append(row["item_id"])
        if not counts:
            counts.update(dataset.judgments["query"].to_pylist())
        if not counts:
            raise DataError(f"{path} has neither searches nor judgments: name a log with --queries")
        known = [price for price in items["price"].to_pylist() if price is not None]
        return cls(
            [query for query, _ in counts.most_common()],
            [(user, tuple(ids[-HISTORY_ITEMS:])) for user, ids in histories.items()],
            items["item_id"].to_pylist(),
            _most_common(items["color"].to_pylist()),
            _most_common([values[-1:] for values in items["category"].to_pylist() if values]),
            [float(np.quantile(known, share)) for share in _PRICE_QUANTILES] if known else [],
        )

    @classmethod
    def of_log(cls, path: Path) -> Workload:
        """Queries of a CSV or Parquet file with the column `query`, one row a search.

        Raises DataError where it cannot be read or has none."""
        try:
            table = (
                parquet.read_table(path, columns=["query"])
                if path.suffix == ".parquet"
                else csv.read_csv(path).select(["query"])
            )
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path}: no column `query` can be read: {error}") from None
        counts = Counter(str(query) for query in table["query"].to_pylist() if query)
        if not counts:
            raise DataError(f"{path} has no query")
        return cls([query for query, _ in counts.most_common()])

    def searches(self, count: int, beam_width: int, random: np.random.Generator) -> list[Request]:
        """Searches as they come in a warm shop."""
        ranks = _zipf(len(self.queries), count, random)
        return [self._search(self.queries[rank], beam_width, random) for rank in ranks]

    def first_searches(
        self, count: int, beam_width: int, random: np.random.Generator
    ) -> list[Request]:
        """Searches of which no two ask the same, as long as there are others: nothing is cached."""
        order = random.permutation(len(self.queries))
        chosen = np.resize(order, count).tolist()
        return [self._search(self.queries[place], beam_width, random) for place in chosen]

    def look_ups(self, count: int, random: np.random.Generator) -> list[Request]:
        """Pages of single items."""
        chosen = _chosen(self.items, count, random)
        return [Request("item", "GET", f"/v1/items/{item}") for item in chosen]

    def changes(self, count: int, random: np.random.Generator) -> list[Request]:
        """Requests that change prices and stock, and some that bring new items."""
        found: list[Request] = []
        for number in range(count):
            if number % NEW_EVERY == 0 or not self.items:
                found.append(_put(number, random, self.colors))
                continue
            changed = [
                {
                    "item_id": item,
                    "price": round(float(random.uniform(5, 200)), 2),
                    "stock": int(random.integers(0, 50)),
                }
                for item in dict.fromkeys(_chosen(self.items, CHANGED_ITEMS, random))
            ]
            found.append(Request("change", "PATCH", "/v1/items", orjson.dumps({"items": changed})))
        return found

    def _search(self, query: str, beam_width: int, random: np.random.Generator) -> Request:
        body: dict[str, Any] = {"query": query, "limit": LIMIT, "beam_width": beam_width}
        kind = random.random()
        if self.histories and kind < HISTORY_SHARE + USER_SHARE:
            user, history = self.histories[int(random.integers(len(self.histories)))]
            if kind < HISTORY_SHARE:
                body["history"] = history
            else:
                body["user_id"] = user
        if random.random() < FILTER_SHARE:
            filters = self._filters(random)
            if filters:
                body["filters"] = filters
        return Request("search", "POST", "/v1/search", orjson.dumps(body))

    def _filters(self, random: np.random.Generator) -> dict[str, Any]:
        """One kind of filter, each as often as the others."""
        choices: list[dict[str, Any]] = []
        if self.prices:
            choices.append({"price_max": float(random.choice(list(self.prices)))})
            choices.append({"in_stock": True})
        if self.colors:
            choices.append({"color": _chosen(self.colors, 1, random)})
        if self.categories:
            choices.append({"category": _chosen(self.categories, 1, random)})
        return choices[int(random.integers(len(choices)))] if choices else {}


def _put(number: int, random: np.random.Generator, colors: Sequence[str]) -> Request:
    """New items that nobody's search depends on; the same ids come again, so there is an end."""
    items = [
        {
            "item_id": f"loadtest-{number % 1000}-{place}",
            "title": f"Load Test Lamp Number {number} of {place}",
            "color": _chosen(colors, 1, random) if colors else [],
            "price": 10.0 + place,
            "stock": 5,
        }
        for place in range(CHANGED_ITEMS)
    ]
    return Request("change", "PUT", "/v1/items", orjson.dumps({"items": items}))


def _zipf(count: int, wanted: int, random: np.random.Generator) -> list[int]:
    weights = 1 / np.arange(1, count + 1) ** ZIPF_EXPONENT
    return random.choice(count, wanted, p=weights / weights.sum()).tolist()


def _chosen(values: Sequence[str], count: int, random: np.random.Generator) -> list[str]:
    if not values:
        return []
    return [values[int(place)] for place in random.integers(len(values), size=count)]


def _most_common(lists: Iterable[Iterable[str] | None], most: int = 20) -> list[str]:
    counts: Counter[str] = Counter()
    for values in lists:
        for value in values or ():
            counts[value] += 1
    return [value for value, _ in counts.most_common(most)]
