"""Which items are relevant to which query, by split: judgments first, else what people chose."""

# pyarrow has no types of its own.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from index.dataset import Dataset

RELEVANT_SHARE = 0.75


def relevant_grade(dataset: Dataset) -> float:
    """The grade from which an item counts as relevant.

    What the dataset's manifest says (`relevant_from`), else three quarters up the grade scale.
    """
    stated = dataset.manifest.get("relevant_from")
    if stated is not None:
        return float(stated)
    grades = dataset.judgments.column("grade").to_numpy()
    low, high = float(grades.min()), float(grades.max())
    return low + RELEVANT_SHARE * (high - low)


def relevant_rows(dataset: Dataset, split: str) -> dict[str, NDArray[np.int64]]:
    """query → item rows, int64, of a split's queries that have at least one relevant item.

    Judgments from `relevant_grade` on; a dataset without judgments uses clicks and orders.
    """
    ids = dataset.items.column("item_id").to_pylist()
    row_of = {item_id: row for row, item_id in enumerate(ids)}
    found: dict[str, set[int]] = defaultdict(set)
    if dataset.judgments.num_rows:
        table = dataset.judgments_of(split)
        keep = table.column("grade").to_numpy() >= relevant_grade(dataset)
        chosen = table.filter(keep)
    else:
        table = dataset.events_of(split)
        kinds = np.array(table.column("kind").to_pylist(), dtype=object)
        queries = np.array(table.column("query").to_pylist(), dtype=object)
        chosen = table.filter((kinds != "impression") & (queries != None))  # noqa: E711
    pairs = zip(
        chosen.column("query").to_pylist(), chosen.column("item_id").to_pylist(), strict=True
    )
    for query, item_id in pairs:
        found[query].add(row_of[item_id])
    return {query: np.array(sorted(rows), np.int64) for query, rows in sorted(found.items())}
