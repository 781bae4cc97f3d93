"""Simulated users for a dataset that has judgments and no behaviour: searches, clicks, orders.

Everything drawn here is *simulated* and the dataset that is written says so. With g ∈ [0, 1] the
grade's place on the scale (unjudged: 0), a user's latent taste and σ the logistic function:

    list    the first IMPRESSIONS of BM25's first CANDIDATES and the judged items, by
            bm25 / best bm25 + GRADE_IN_LIST · g + Gumbel(LIST_NOISE); the same for everybody
    taste   Σ over FIELDS of weight · mean over the item's values of 1 for one the user likes,
            DISLIKE for one they avoid, else 0
    click   P = position^-ETA · σ(CLICK_BIAS + CLICK_PER_GRADE · g + taste)
    order   P = σ(ORDER_BIAS + ORDER_PER_GRADE · g + taste) of what was clicked; the best liked one

A user likes so many values of each field and avoids as many, drawn by how common they are. Queries
are asked by a Zipf law (exponent ZIPF). Searches are spread evenly over DAYS days. The first part
of the time is marked train, then validation, then test (TIME_SHARES); the queries keep the splits
of the source dataset, and an event counts for a split only if both say so, so no test query is
trained on and nothing after the cut. In the two held-out periods HELD_SHARE of the searches ask
queries of that period's split. Tastes are in no file.
"""

# pyarrow has no types of its own.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.dataset import Dataset, write_dataset
from index.errors import ConfigError, DataError
from index.lexical import LexicalIndex
from index.splits import SPLIT_NAMES
from index.text import item_text

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
IMPRESSIONS = 10
CANDIDATES = 30
GRADE_IN_LIST = 0.5
LIST_NOISE = 0.15
ETA = 0.6
CLICK_BIAS, CLICK_PER_GRADE = -5.0, 3.4
ORDER_BIAS, ORDER_PER_GRADE = -4.0, 2.0
# Field → how many of its values a user likes, and what liking one weighs.
FIELDS = {"brand": (40, 2.4), "color": (3, 2.0), "material": (4, 1.6)}
DISLIKE = -0.7
ZIPF = 0.6
DAY_S = 86_400.0
DAYS = 60
EPOCH_S = 1_767_225_600.0  # 1 January 2026
TIME_SHARES = (0.7, 0.12, 0.18)
HELD_SHARE = 0.6
ACTIVITY = 1.0  # standard deviation of the logarithm of users' activity


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    users: int = 1000
    sessions: int = 40_000
    seed: int = 7

    def __post_init__(self) -> None:
        if self.users < 1 or self.sessions < 1 or self.seed < 0:
            raise ConfigError(
                f"users is {self.users}, sessions {self.sessions}, seed {self.seed}; the first two "
                "must be at least 1 and the seed at least 0"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A query's list before noise: item rows (n,), score (n,), place of the grade (n,)."""

    rows: Ints
    score: Floats
    grade: Floats


def simulate_behaviour(
    source: Dataset, target: Path, settings: SimulationSettings, *, overwrite: bool = False
) -> Dataset:
    """Write `source` with simulated users and events as the dataset `target`.

    The same source and settings give the same version. Raises DataError for a dataset without
    judgments or with events of its own, ArtifactError when `target` is taken.
    """
    if source.judgments.num_rows == 0:
        message = "has no judgments; behaviour can only be simulated from graded relevance"
        raise DataError(message, path=source.path)
    if source.events.num_rows:
        raise DataError("has events already; nothing is simulated beside them", path=source.path)
    simulation = _Simulation(source, settings)
    return write_dataset(
        target,
        items=source.items.to_pylist(),
        judgments=source.judgments.to_pylist(),
        events=simulation.events(),
        users=({"user_id": _user_id(number)} for number in range(settings.users)),
        splits=source.split_of(),
        source=f"{source.manifest.get('source')} (simulated behaviour)",
        simulated=True,
        queries_derived=source.queries_derived,
        overwrite=overwrite,
        relevant_from=source.manifest.get("relevant_from"),
        parents=[source.version],
        simulation={
            "users": settings.users,
            "sessions": settings.sessions,
            "seed": settings.seed,
        },
    )


class _Simulation:
    """Draws users, then their searches one by one."""

    def __init__(self, source: Dataset, settings: SimulationSettings) -> None:
        self._settings = settings
        self._streams = [np.random.default_rng([settings.seed, part]) for part in range(4)]
        items = source.items.select(["item_id", "title", *FIELDS]).to_pylist()
        self._ids = [row["item_id"] for row in items]
        self._lexical = LexicalIndex.build(map(item_text, items))
        self._tastes = {
            name: _Taste([row[name] for row in items], liked, weight, settings, self._streams[0])
            for name, (liked, weight) in FIELDS.items()
        }
        self._judged = _judged(source)
        self._queries = {split: self._by_demand(source, split) for split in SPLIT_NAMES}
        self._asked: dict[str, _Asked] = {}

    def events(self) -> Iterator[dict[str, Any]]:
        """Events of all sessions, session by session in time."""
        settings, random = self._settings, self._streams[2]
        activity = self._streams[1].lognormal(0, ACTIVITY, settings.users)
        users = random.choice(settings.users, settings.sessions, p=activity / activity.sum())
        places = np.sort(random.random(settings.sessions))
        for number, (user, place) in enumerate(zip(users.tolist(), places.tolist(), strict=True)):
            mark = SPLIT_NAMES[int(np.searchsorted(np.cumsum(TIME_SHARES)[:-1], place, "right"))]
            query = self._query(mark, random)
            begun = round(EPOCH_S + place * DAYS * DAY_S, 1)
            common = {
                "session_id": f"s{number + 1:06d}",
                "user_id": _user_id(user),
                "query": query,
                "split": mark,
            }
            yield from self._search(common, user, begun)

    def _by_demand(self, source: Dataset, split: str) -> tuple[list[str], Floats]:
        """A split's judged queries, and their cumulative demand."""
        queries = [query for query in source.queries(split) if query in self._judged]
        order = self._streams[3].permutation(len(queries))
        demand: Floats = (1.0 + np.arange(len(queries), dtype=np.float64)) ** -ZIPF
        return [queries[i] for i in order], np.cumsum(demand).astype(np.float64)

    def _query(self, mark: str, random: np.random.Generator) -> str:
        held = mark != "train" and random.random() < HELD_SHARE
        queries, demand = self._queries[mark if held else "train"]
        if not queries:
            queries, demand = next(found for found in self._queries.values() if found[0])
        at = np.searchsorted(demand, random.random() * demand[-1], side="right")
        return queries[min(int(at), len(queries) - 1)]

    def _search(self, common: dict[str, Any], user: int, begun: float) -> Iterator[dict[str, Any]]:
        random = self._streams[2]
        asked = self._asked.get(common["query"]) or self._list(common["query"])
        drawn = asked.score + random.gumbel(0, LIST_NOISE, len(asked.rows))
        top = np.argsort(-drawn, kind="stable")[:IMPRESSIONS]
        rows, grade = asked.rows[top], asked.grade[top]
        liking = sum((taste.of(user, rows) for taste in self._tastes.values()), np.zeros(len(rows)))
        seen = np.arange(1, len(rows) + 1) ** -ETA
        click = seen * _sigmoid(CLICK_BIAS + CLICK_PER_GRADE * grade + liking)
        clicked = random.random(len(rows)) < click
        order = _sigmoid(ORDER_BIAS + ORDER_PER_GRADE * grade + liking)
        wanted = clicked & (random.random(len(rows)) < order)
        best = int(np.where(wanted, liking + grade, -np.inf).argmax())
        read = np.cumsum(random.uniform(1.5, 9.0, len(rows)))
        decided = random.uniform(60.0, 900.0, len(rows))
        for place, row in enumerate(rows.tolist()):
            shown = {**common, "item_id": self._ids[row], "position": place + 1}
            yield {**shown, "kind": "impression", "time": begun}
            if clicked[place]:
                yield {**shown, "kind": "click", "time": round(begun + read[place], 1)}
            if wanted[place] and place == best:
                bought = begun + read[place] + decided[place]
                yield {**shown, "kind": "order", "time": round(bought, 1)}

    def _list(self, query: str) -> _Asked:
        judged = self._judged[query]
        found, _ = self._lexical.search(query, CANDIDATES)
        rows = np.union1d(found, np.array(list(judged), np.int64)).astype(np.int64)
        lexical = self._lexical.scores(query, rows).astype(np.float64)
        grade = np.array([judged.get(row, 0.0) for row in rows.tolist()])
        score = lexical / max(float(lexical.max()), 1e-9) + GRADE_IN_LIST * grade
        asked = _Asked(rows, score, grade)
        self._asked[query] = asked
        return asked


class _Taste:
    """One field's likes: `of(user, rows)` is the weighted mean liking of each row's values."""

    def __init__(
        self,
        cells: Sequence[Any],
        liked: int,
        weight: float,
        settings: SimulationSettings,
        random: np.random.Generator,
    ) -> None:
        self._weight = weight
        texts = [[cell] if isinstance(cell, str) else list(cell or ()) for cell in cells]
        counts = Counter(text for row in texts for text in row)
        number = {text: i for i, text in enumerate(sorted(counts))}
        self._values = [[number[text] for text in row] for row in texts]
        self._likes: list[dict[int, float]] = []
        share = np.array([counts[text] for text in sorted(counts)], np.float64)
        drawn = min(2 * liked, len(share))
        for _ in range(settings.users):
            # Gumbel top-k: values without repetition, in proportion to how common they are.
            keys = np.log(share) + random.gumbel(size=len(share))
            chosen = np.argsort(-keys, kind="stable")[:drawn]
            fond, cold = chosen[: (drawn + 1) // 2], chosen[(drawn + 1) // 2 :]
            self._likes.append(
                dict.fromkeys(fond.tolist(), 1.0) | dict.fromkeys(cold.tolist(), DISLIKE)
            )

    def of(self, user: int, rows: Ints) -> Floats:
        likes = self._likes[user]
        means = [
            sum(likes.get(value, 0.0) for value in self._values[row]) / len(self._values[row])
            if self._values[row]
            else 0.0
            for row in rows.tolist()
        ]
        return self._weight * np.array(means)


def _judged(source: Dataset) -> dict[str, dict[int, float]]:
    """query → item row → place of the grade on the scale, 0 … 1."""
    table = source.judgments
    grades = table.column("grade").to_numpy()
    low, high = float(grades.min()), float(grades.max())
    places = (grades - low) / (high - low) if high > low else np.ones(len(grades))
    row_of = {name: row for row, name in enumerate(source.items.column("item_id").to_pylist())}
    found: dict[str, dict[int, float]] = defaultdict(dict)
    queries, items = table.column("query").to_pylist(), table.column("item_id").to_pylist()
    for query, item, place in zip(queries, items, places.tolist(), strict=True):
        found[query][row_of[item]] = place
    return found


def _sigmoid(x: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-x))


def _user_id(number: int) -> str:
    return f"u{number + 1:05d}"
