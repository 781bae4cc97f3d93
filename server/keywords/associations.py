"""Co-click expansion: which concepts the items have that people clicked after using a word.

    score(u, c) = p(c | u) · log( p(c | u) / p(c) )

over the pairs (query, item) of a log, with u a word of the query (or the whole query), c a concept
of the item, p(c) its share of all clicks. A word's MAX_CONCEPTS best concepts are kept, those with
a positive score and MIN_PAIRS pairs; a query is the mean of its words, weighted by their idf,
unless it was seen itself.

Only the training side of a dataset is read: what is learnt here must not know the test's answers.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.dataset import Dataset
from index.items import ItemTable
from index.text import normalise, words
from server.keywords.cues import STOP_WORDS
from server.keywords.vocabulary import Runs, Vocabulary

MAX_CONCEPTS = 12
MIN_PAIRS = 3
MAX_UNITS = 200_000
RELEVANT_SHARE = 0.8
"""A judged item counts as clicked from this share of the highest grade."""


class Click(NamedTuple):
    """A query and the row of an item that was clicked, ordered or judged relevant."""

    query: str
    row: int


@dataclass(frozen=True, slots=True, eq=False)
class Associations:
    """Concepts of query words: `concepts` by unit, `scores` float32 alongside.

    `version`: of the log they were learnt from; part of the keywords' source.
    """

    units: Mapping[str, int]
    concepts: Runs
    scores: NDArray[np.float32]
    version: str

    @classmethod
    def build(
        cls, clicks: Iterable[Click], vocabulary: Vocabulary, *, version: str
    ) -> Associations:
        """Count a log. The vocabulary's items name the concepts."""
        units: dict[str, int] = {}
        unit_list: list[int] = []
        row_list: list[int] = []
        known: dict[str, list[int]] = {}
        for query, row in clicks:
            numbers = known.get(query)
            if numbers is None:
                numbers = known[query] = [
                    units.setdefault(unit, len(units))
                    for unit in units_of(query)
                    if unit in units or len(units) < MAX_UNITS
                ]
            unit_list += numbers
            row_list += [row] * len(numbers)
        unit, row = np.array(unit_list, np.int64), np.array(row_list, np.int64)
        position, concept = vocabulary.items.gather(row)
        n_concepts = max(len(vocabulary.concepts), 1)
        pairs, counts = np.unique(unit[position] * n_concepts + concept, return_counts=True)
        pair_unit, pair_concept = np.divmod(pairs, n_concepts)
        clicks_of_unit = np.bincount(unit, minlength=len(units)).astype(np.float64)
        clicks_of_concept = np.bincount(pair_concept, weights=counts, minlength=n_concepts)
        share = counts / clicks_of_unit[pair_unit]
        background = clicks_of_concept[pair_concept] / max(len(unit), 1)
        scores = share * np.log(share / background)
        good = (scores > 0) & (counts >= MIN_PAIRS)
        pair_unit, pair_concept, scores = pair_unit[good], pair_concept[good], scores[good]
        order = np.lexsort((pair_concept, -scores, pair_unit))
        pair_unit, pair_concept, scores = pair_unit[order], pair_concept[order], scores[order]
        first = np.searchsorted(pair_unit, np.arange(len(units) + 1))
        rank = np.arange(len(pair_unit)) - first[pair_unit]
        best = rank < MAX_CONCEPTS
        start = np.concatenate([[0], np.cumsum(np.bincount(pair_unit[best], minlength=len(units)))])
        runs = Runs(start.astype(np.int64), pair_concept[best].astype(np.int32))
        return cls(units, runs, scores[best].astype(np.float32), version)

    def expand(self, query: str, vocabulary: Vocabulary) -> dict[int, float]:
        """Scores of concepts for a query in normal form; empty if no word of it was seen."""
        whole = self.units.get(_whole(query))
        if whole is not None and len(self.concepts.of(whole)):
            return self._of(whole)
        found: dict[int, float] = {}
        total = 0.0
        for unit in units_of(query)[1:]:
            number = self.units.get(unit)
            token = vocabulary.lexical.vocabulary.get(unit)
            weight = float(vocabulary.lexical.idf[token]) if token is not None else 1.0
            total += weight
            if number is not None:
                for concept, score in self._of(number).items():
                    found[concept] = found.get(concept, 0.0) + weight * score
        return {concept: score / total for concept, score in found.items()}

    def _of(self, unit: int) -> dict[int, float]:
        run = slice(self.concepts.start[unit], self.concepts.start[unit + 1])
        values = self.concepts.values[run].tolist()
        return dict(zip(values, self.scores[run].tolist(), strict=True))


def units_of(query: str) -> list[str]:
    """The whole query and its content words."""
    content = [word for word in words(query) if word not in STOP_WORDS]
    return [_whole(query), *dict.fromkeys(content)]


def _whole(query: str) -> str:
    # The mark cannot be in a word, so that a query of one word is not mistaken for the word.
    return "=" + " ".join(word for word in words(query) if word not in STOP_WORDS)


def clicks_of(dataset: Dataset, items: ItemTable) -> list[Click]:
    """Clicks, orders and relevant judgments of training queries, as rows of `items`."""
    splits = dataset.splits
    train = {
        query
        for query, split in zip(
            splits["query"].to_pylist(), splits["split"].to_pylist(), strict=True
        )
        if split == "train"
    }
    queries: list[str] = []
    ids: list[str] = []
    events = dataset.events
    marks = events["split"].to_pylist()
    columns = (events[name].to_pylist() for name in ("query", "item_id", "kind"))
    for query, item_id, kind, mark in zip(*columns, marks, strict=True):
        if query in train and kind in ("click", "order") and mark in (None, "train"):
            queries.append(query)
            ids.append(item_id)
    judgments = dataset.judgments
    grades = judgments["grade"].to_pylist()
    least = RELEVANT_SHARE * max(grades, default=0.0)
    columns = (judgments[name].to_pylist() for name in ("query", "item_id"))
    for query, item_id, grade in zip(*columns, grades, strict=True):
        if query in train and grade >= least:
            queries.append(query)
            ids.append(item_id)
    rows = items.rows_of(ids).tolist()
    return [Click(normalise(q), row) for q, row in zip(queries, rows, strict=True) if row >= 0]
