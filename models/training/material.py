"""What training reads of a dataset: who wanted which item for which query, and after what.

Only the training split is read here (`Dataset.judgments_of("train")`, `events_of("train")`; of
other splits the two ends of the grade scale), so test queries cannot leak into encoder,
pseudo-queries or decoder. A search's history is what its user chose before the search began.
"""

# pyarrow has no types of its own.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from index.dataset import Dataset
from index.text import item_text, normalise, words
from models.training.leakage import check_leakage
from models.training.visits import Visit, read_choices, read_visits, rows_by_id

IntArray = NDArray[np.int64]
RELEVANT_SHARE = 0.6
_ITEM_COLUMNS = ("title", "brand", "category")


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """Training material of one dataset.

    item_texts, titles (tokenised), categories ("" where unknown): one entry an item row.
    known: query → ((row, weight), …), weights in (0, 1], of the training split.
    visits: the training events as searches with history. sequences: the item rows that each user
    chose in events that training may know, oldest first.
    """

    item_texts: list[str]
    titles: list[list[str]]
    categories: list[str]
    popularity: NDArray[np.float64]
    known: dict[str, tuple[tuple[int, float], ...]]
    visits: list[Visit]
    sequences: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])

    @property
    def queries(self) -> list[str]:
        return list(self.known)

    def pairs(self) -> tuple[IntArray, IntArray, NDArray[np.float64]]:
        """Query index (into `queries`), item row, weight: all (P,)."""
        flat = [
            (index, row, weight)
            for index, pairs in enumerate(self.known.values())
            for row, weight in pairs
        ]
        if not flat:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        query, row, weight = zip(*flat, strict=True)
        return np.array(query, np.int64), np.array(row, np.int64), np.array(weight, np.float64)


def read_material(dataset: Dataset) -> Material:
    """Collect the training split of a dataset.

    Raises DataError when it knows what will be measured (`models.training.leakage`).
    """
    columns = dataset.items.select(list(_ITEM_COLUMNS)).to_pylist()
    item_texts = [item_text(row) for row in columns]
    row_of = rows_by_id(dataset)
    popularity = np.nan_to_num(
        dataset.items.column("popularity").to_numpy(zero_copy_only=False).astype(np.float64)
    )
    known: dict[str, dict[int, float]] = defaultdict(dict)
    for query, row, weight in _judged(dataset, row_of):
        known[query][row] = max(weight, known[query].get(row, 0.0))
    visits = read_visits(dataset, "train")
    for visit in visits:
        for row, weight in visit.wanted:
            total = known[visit.query].get(row, 0.0) + 0.5 * weight
            known[visit.query][row] = min(1.0, total)
    check_leakage(dataset, visits, known)
    return Material(
        item_texts=item_texts,
        titles=[words(text) for text in item_texts],
        categories=[normalise(" ".join(row["category"] or [])) for row in columns],
        popularity=popularity,
        known={query: tuple(sorted(rows.items())) for query, rows in sorted(known.items())},
        visits=visits,
        sequences=[
            tuple(choice.row for choice in found)
            for _, found in sorted(read_choices(dataset.events_before_cut(), row_of).items())
        ],
    )


def _judged(dataset: Dataset, row_of: dict[str, int]) -> list[tuple[str, int, float]]:
    """(query, row, weight) of judgments in the upper part of the grade scale."""
    table = dataset.judgments_of("train")
    if table.num_rows == 0:
        return []
    grades = table.column("grade").to_numpy()
    everything = dataset.judgments.column("grade").to_numpy()
    low, high = float(everything.min()), float(everything.max())
    share = (grades - low) / (high - low) if high > low else np.ones(len(grades))
    queries = table.column("query").to_pylist()
    items = table.column("item_id").to_pylist()
    return [
        (queries[i], row_of[items[i]], float(share[i]))
        for i in np.flatnonzero(share >= RELEVANT_SHARE)
    ]
