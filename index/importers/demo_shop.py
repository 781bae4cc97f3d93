"""A *simulated* shop to try everything on: catalogue, users, queries, behaviour, judgments.

Written as generic JSON lines with the field names of `index.dataset`, so the same importer reads
it as any other source. Nothing in it is real: brands are invented, tastes and clicks are drawn
from the models in `demo_behaviour`, grades are computed from what queries mean (`demo_queries`).
The same seed and sizes give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from index.errors import ConfigError
from index.importers.demo_behaviour import Sessions, simulate
from index.importers.demo_items import DemoItems, make_items
from index.importers.demo_queries import DemoQuery, QueryWriter, demand, grades
from index.importers.demo_ranker import BaselineRanker
from index.importers.demo_table import ShopTable, read_table
from index.importers.demo_users import DemoUsers, make_users

SOURCE = "demo shop (simulated)"
QUERIES_PER_ITEM = 0.75
JUDGED_SHARE = 0.4  # of the queries
MAX_RELEVANT = 120  # judged items of grade 2 and 3 per query
MAX_MARGINAL = 8  # of grade 1
MAX_HARD = 10  # of grade 0, the baseline's first wrong ones
RELEVANT_FROM = 3  # what was asked for, in all respects (`demo_queries.grades`)
MIN_RELEVANT = 2
BROAD_SHARE = 0.25  # of the heads and questions are judged, relative to other queries


@dataclass(frozen=True, slots=True)
class DemoShop:
    """Everything in memory, with what the files keep to themselves (tastes, meanings)."""

    table: ShopTable
    items: DemoItems
    queries: list[DemoQuery]
    users: DemoUsers
    sessions: Sessions
    judgments: list[tuple[str, str, int]]


def generate(
    directory: Path,
    *,
    seed: int = 7,
    n_items: int = 6000,
    n_users: int = 2000,
    n_sessions: int = 12_000,
) -> None:
    """Write items, users, events and judgments (.jsonl) and dataset.json into `directory`.

    dataset.json comes last and says `simulated`. Raises ConfigError for sizes that cannot work.
    """
    shop = make_shop(seed=seed, n_items=n_items, n_users=n_users, n_sessions=n_sessions)
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "items.jsonl", shop.items.rows)
    _write(
        directory / "users.jsonl",
        (
            {"user_id": _user_id(number), "attributes": attributes}
            for number, attributes in enumerate(shop.users.attributes)
        ),
    )
    _write(directory / "events.jsonl", _events(shop, np.random.default_rng([seed, 6])))
    _write(
        directory / "judgments.jsonl",
        (
            {"query": query, "item_id": item, "grade": grade}
            for query, item, grade in shop.judgments
        ),
    )
    sizes = {"n_items": n_items, "n_users": n_users, "n_sessions": n_sessions}
    facts = {"source": SOURCE, "simulated": True, "relevant_from": RELEVANT_FROM, "seed": seed}
    _write(directory / "dataset.json", [{**facts, **sizes}])


def make_shop(*, seed: int, n_items: int, n_users: int, n_sessions: int) -> DemoShop:
    """The shop in memory. Raises ConfigError for sizes that cannot work."""
    table = read_table()
    if n_items < len(table.categories):
        raise ConfigError(
            f"n_items is {n_items}; the demo shop needs one item for each of its "
            f"{len(table.categories)} categories"
        )
    if n_users < 1 or n_sessions < 1 or seed < 0:
        raise ConfigError(
            f"n_users is {n_users}, n_sessions {n_sessions}, seed {seed}; the first two must be "
            "at least 1 and the seed at least 0"
        )
    # One stream per part: changing how queries are written leaves the items as they are.
    streams = [np.random.default_rng([seed, part]) for part in range(6)]
    items = make_items(table, n_items, streams[0])
    queries = QueryWriter(table, items, streams[1]).write(round(n_items * QUERIES_PER_ITEM))
    users = make_users(table, items, n_users, streams[2])
    weights = demand(queries, streams[3])
    sessions = simulate(table, items, queries, weights, users, n_sessions, streams[4])
    judgments = _judge(table, items, queries, streams[5])
    return DemoShop(table, items, queries, users, sessions, judgments)


def _judge(
    table: ShopTable, items: DemoItems, queries: list[DemoQuery], rng: np.random.Generator
) -> list[tuple[str, str, int]]:
    """Relevant items, marginal ones, and the wrong ones that the baseline ranks first."""
    ranker = BaselineRanker(items)
    keys = rng.random(len(queries))
    keys[[query.intent in ("head", "question") for query in queries]] /= BROAD_SHARE
    judged: list[tuple[str, str, int]] = []
    for number in sorted(np.argsort(keys, kind="stable")[: round(JUDGED_SHARE * len(queries))]):
        query = queries[number]
        grade = grades(query, items, table)
        relevant = np.flatnonzero(grade >= 2)
        if len(relevant) < MIN_RELEVANT:
            continue
        order = np.argsort(-ranker.scores(query.text), kind="stable")
        marginal = order[grade[order] == 1][:MAX_MARGINAL]
        hard = order[grade[order] == 0][:MAX_HARD]
        if len(relevant) > MAX_RELEVANT:
            relevant = np.sort(rng.choice(relevant, MAX_RELEVANT, replace=False))
        for item in (*relevant, *marginal, *hard):
            judged.append((query.text, items.rows[item]["item_id"], int(grade[item])))
    return judged


def _user_id(number: int) -> str:
    return f"u{number + 1:04d}"


def _events(shop: DemoShop, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Events of all sessions, by time: impressions at once, clicks after reading down to them."""
    sessions = shop.sessions
    n_sessions, n_shown = sessions.items.shape
    reading = np.cumsum(rng.uniform(1.5, 9.0, (n_sessions, n_shown)), axis=1)
    deciding = rng.uniform(60.0, 900.0, (n_sessions, n_shown))
    events: list[dict[str, Any]] = []
    for number in range(n_sessions):
        start = float(sessions.time[number])
        common = {
            "session_id": f"s{number + 1:06d}",
            "user_id": _user_id(int(sessions.user[number])),
            "query": shop.queries[sessions.query[number]].text,
        }
        for place in range(n_shown):
            item_id = shop.items.rows[sessions.items[number, place]]["item_id"]
            shown = {**common, "item_id": item_id, "kind": "impression", "position": place + 1}
            events.append({**shown, "time": round(start, 1)})
            click = start + float(reading[number, place])
            if sessions.clicked[number, place]:
                events.append({**shown, "kind": "click", "time": round(click, 1)})
            if sessions.ordered[number, place]:
                order = click + float(deciding[number, place])
                events.append({**shown, "kind": "order", "time": round(order, 1)})
    events.sort(key=lambda event: event["time"])
    return events


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines under a temporary name, synced, renamed."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with temporary.open("wb") as file:
        for row in rows:
            file.write(orjson.dumps(row) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
