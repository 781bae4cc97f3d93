"""What a user takes next, without a query: the protocol of generative recommenders.

Every test-marked choice of a user with something before it is one case: the history is all that the
user chose before (whatever its mark), the answer is the item chosen. HR@10 and NDCG@10 over the
whole catalogue; items of the history are not left out.

    generative    beam of the prompt without a query; items of a SID by popularity
    co_occurrence items by how often training users chose them next after a history item, newer
                  history counting more (1/distance)
    similar       largest cosine with the newest history item
    popularity    choices in training
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.dataset import Dataset
from index.errors import ConfigError
from models.ranking import candidates_of
from models.training.cluster_bootstrap import ClusterBootstrap
from models.training.personal_evaluation import metrics_of
from models.training.personal_weights import SEARCH_BATCH, VisitSearch
from models.training.visits import MAX_HISTORY, read_choices, rows_by_id

IntArray = NDArray[np.int64]
METHODS = ("generative", "co_occurrence", "similar", "popularity")
TOP = 10
NEAR = 5


class NextCase(NamedTuple):
    """A choice to be foretold: the user, their rows before (oldest first), the row chosen."""

    user: str
    history: tuple[int, ...]
    row: int


def read_cases(dataset: Dataset, split: str) -> list[NextCase]:
    """The marked choices of a split whose user chose something before."""
    row_of = rows_by_id(dataset)
    events = dataset.events
    marks: dict[tuple[str, float], set[int]] = {}
    columns = (events.column(name).to_pylist() for name in ("user_id", "time", "item_id", "split"))
    for user, time, item, mark in zip(*columns, strict=True):
        if user and mark == split:
            marks.setdefault((user, time), set()).add(row_of[item])
    cases: list[NextCase] = []
    for user, found in sorted(read_choices(events, row_of).items()):
        for place, choice in enumerate(found):
            past = tuple(c.row for c in found[:place] if c.time < choice.time)[-MAX_HISTORY:]
            if past and choice.row in marks.get((user, choice.time), ()):
                cases.append(NextCase(user, past, choice.row))
    return cases


def evaluate_next(
    searcher: VisitSearch,
    cases: Sequence[NextCase],
    sequences: Sequence[Sequence[int]],
    *,
    seed: int = 7,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Figures of each method with intervals over users. `sequences`: training users' rows.

    Raises ConfigError without a case.
    """
    if not cases:
        raise ConfigError("no choice of this split has another one of its user before it")
    ranked: dict[str, list[IntArray]] = {
        "generative": _generative(searcher, cases, progress),
        **_baselines(searcher, cases, sequences),
    }
    bootstrap = ClusterBootstrap([case.user for case in cases], np.random.default_rng(seed))
    values = {
        name: np.array(
            [metrics_of(rows, [case.row])[:2] for rows, case in zip(found, cases, strict=True)]
        ).T
        for name, found in ranked.items()
    }
    return {
        "cases": len(cases),
        "users": len({case.user for case in cases}),
        "beam_width": searcher.beam_width,
        "methods": {name: _summary(bootstrap, *columns) for name, columns in values.items()},
        "differences": {
            f"generative - {name}": _summary(bootstrap, *(values["generative"] - columns))
            for name, columns in values.items()
            if name != "generative"
        },
    }


def _generative(
    searcher: VisitSearch,
    cases: Sequence[NextCase],
    progress: Callable[[str, int, int], None] | None,
) -> list[IntArray]:
    snapshot = searcher.snapshot
    ranked: list[IntArray] = []
    for start in range(0, len(cases), SEARCH_BATCH):
        part = cases[start : start + SEARCH_BATCH]
        prompts = [
            searcher.prompts.next_item(list(searcher.codes_of(case.history))) for case in part
        ]
        for beam in searcher.search(prompts, searcher.beam_width):
            ranked.append(candidates_of(snapshot, beam.leaves, beam.scores).rows[:TOP])
        if progress is not None:
            progress("foretelling", len(ranked), len(cases))
    return ranked


def _baselines(
    searcher: VisitSearch, cases: Sequence[NextCase], sequences: Sequence[Sequence[int]]
) -> dict[str, list[IntArray]]:
    count = len(searcher.snapshot.items)
    chosen = np.zeros(count)
    after: list[dict[int, float]] = [{} for _ in range(count)]
    for rows in sequences:
        np.add.at(chosen, np.array(rows, np.int64), 1.0)
        for place, row in enumerate(rows):
            for distance, later in enumerate(rows[place + 1 : place + 1 + NEAR], 1):
                after[row][later] = after[row].get(later, 0.0) + 1.0 / distance
    popular = np.argsort(-chosen, kind="stable")[:TOP]
    tie = chosen / (chosen.max() + 1.0) * 1e-3
    together: list[IntArray] = []
    similar: list[IntArray] = []
    for case in cases:
        score = tie.copy()
        for distance, row in enumerate(reversed(case.history), 1):
            for later, weight in after[row].items():
                score[later] += weight / distance
        together.append(np.argsort(-score, kind="stable")[:TOP])
        newest = searcher.snapshot.dense.vectors(np.array([case.history[-1]]))
        similar.append(searcher.snapshot.dense.search(newest, TOP)[0][0].astype(np.int64))
    return {
        "co_occurrence": together,
        "similar": similar,
        "popularity": [popular] * len(cases),
    }


def _summary(
    bootstrap: ClusterBootstrap, hits: NDArray[np.float64], gains: NDArray[np.float64]
) -> dict[str, Any]:
    rate, hit_edges = bootstrap.interval(hits)
    gain, gain_edges = bootstrap.interval(gains)
    return {"hr@10": rate, "ndcg@10": gain, "ci95": {"hr@10": hit_edges, "ndcg@10": gain_edges}}
