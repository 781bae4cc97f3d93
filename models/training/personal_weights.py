"""Weights that rank for a user with a history, fitted on searches held out for validation.

For each visit with something wanted among its candidates, the candidates' features (rescoring, then
taste) and the weights of what was wanted (order 1, click ½) make one list of the listwise softmax
regression of `index.rescoring`. `sid`, `dense` and `lexical` stay at 0 or above, all else is free.
The impersonal weights are fitted on the same visits as if nobody had a history: what the personal
ones are compared with, so that a gain is the history's and not the fitting's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Hypotheses, Prompt
from index.dataset import Dataset
from index.rescoring import FEATURES, NON_NEGATIVE, RescoringWeights, features, fit_vector
from index.snapshot import Snapshot
from index.taste import TASTE_FEATURES, PersonalWeights, TasteTable, TasteWeights
from models.personal import PERSONAL
from models.query import QueryPrompts
from models.ranking import Candidates, candidates_of
from models.training.visits import Visit, read_visits

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
SearchBatch = Callable[[Sequence[Prompt], int], list[Hypotheses]]
RETRIEVED = 200
MIN_VISITS = 20
MAX_FITTED_VISITS = 1_000
SEARCH_BATCH = 16


@dataclass(frozen=True, slots=True, eq=False)
class VisitSearch:
    """What answers the searches of users: snapshot, prompts, an engine's batch search."""

    snapshot: Snapshot
    prompts: QueryPrompts
    search: SearchBatch
    beam_width: int
    taste: TasteTable

    def embed(self, visits: Sequence[Visit]) -> dict[str, FloatArray]:
        """query → embedding (d,), each distinct query once; zero for texts of unknown words."""
        texts = sorted({visit.query for visit in visits})
        embedded = np.nan_to_num(self.snapshot.embed_queries(texts))
        return dict(zip(texts, embedded, strict=True))

    def answer(
        self, visits: Sequence[Visit], embedded: dict[str, FloatArray], *, history: bool
    ) -> list[Hypotheses]:
        """The beam of each visit, with the user's history in the prompt or without."""
        found: list[Hypotheses] = []
        for start in range(0, len(visits), SEARCH_BATCH):
            part = visits[start : start + SEARCH_BATCH]
            sids = [list(self.codes_of(v.history if history else ())) for v in part]
            vectors = np.stack([embedded[v.query] for v in part])
            prompts = self.prompts.prompts([v.query for v in part], vectors, sids)
            found += self.search(prompts, self.beam_width)
        return found

    def codes_of(self, rows: Sequence[int]) -> NDArray[np.int32]:
        """SIDs of item rows, int32 (n, L)."""
        leaves = self.snapshot.postings.leaf_of_row[np.array(rows, np.int64)]
        return self.snapshot.trie.codes_of_leaves(leaves.astype(np.int64))

    def retrieved(self, query: str, embedding: FloatArray, count: int) -> tuple[IntArray, IntArray]:
        """The first `count` rows of BM25 and of dense search."""
        lexical, _ = self.snapshot.lexical.search(query, count)
        dense, _ = self.snapshot.dense.search(embedding[None], count)
        return lexical.astype(np.int64), dense[0].astype(np.int64)

    def candidates(self, beam: Hypotheses, *rankings: IntArray) -> Candidates:
        """The beam's items, and beside them the first RETRIEVED of each ranking, without a score of
        their own."""
        inside = candidates_of(self.snapshot, beam.leaves, beam.scores)
        found = np.concatenate([rows[:RETRIEVED] for rows in rankings])
        outside = np.setdiff1d(found, inside.rows)
        return Candidates(
            np.concatenate([inside.rows, outside]),
            np.concatenate([inside.sid_scores, np.full(len(outside), np.nan, np.float32)]),
            np.concatenate([inside.hypothesis, np.full(len(outside), -1)]),
        )

    def table(
        self, visit: Visit, embedding: FloatArray, candidates: Candidates, *, history: bool
    ) -> FloatArray:
        """Rescoring features beside taste features of candidates, float32 (n, F + T)."""
        rows, snapshot = candidates.rows, self.snapshot
        scores = candidates.sid_scores if (candidates.hypothesis >= 0).any() else None
        plain = features(embedding, visit.query, rows, scores, snapshot)
        past = visit.history if history else ()
        return np.concatenate([plain, self.taste.features(past, rows, snapshot.dense)], axis=1)


def gains_of(visit: Visit, rows: NDArray[np.int64]) -> FloatArray:
    """The weight of each row if it was wanted, else 0, float32 (n,)."""
    wanted = dict(visit.wanted)
    return np.array([wanted.get(row, 0.0) for row in rows.tolist()], np.float32)


def fit_weights(tables: Sequence[tuple[FloatArray, FloatArray]]) -> PersonalWeights | None:
    """Weights of lists (features (n, F + T), gains (n,)); None when fewer than MIN_VISITS teach."""
    useful = [(table, gains) for table, gains in tables if len(gains) > 1 and gains.any()]
    if len(useful) < MIN_VISITS:
        return None
    non_negative = np.concatenate([NON_NEGATIVE, np.zeros(len(TASTE_FEATURES), np.bool_)])
    vector = fit_vector(useful, non_negative)
    return PersonalWeights(
        RescoringWeights.from_vector(vector[: len(FEATURES)]),
        TasteWeights.from_vector(vector[len(FEATURES) :]),
    )


def fit_personal(
    searcher: VisitSearch, visits: Sequence[Visit], *, history: bool = True
) -> PersonalWeights | None:
    """Weights for users with a history, fitted on visits that have one; with `history` false the
    impersonal ones, fitted on the same visits. None when too few visits teach."""
    chosen = [visit for visit in visits if visit.history]
    if len(chosen) < MIN_VISITS:
        return None
    embedded = searcher.embed(chosen)
    tables: list[tuple[FloatArray, FloatArray]] = []
    for visit, beam in zip(chosen, searcher.answer(chosen, embedded, history=history), strict=True):
        vector = embedded[visit.query]
        found = searcher.candidates(beam, *searcher.retrieved(visit.query, vector, RETRIEVED))
        table = searcher.table(visit, vector, found, history=history)
        tables.append((table, gains_of(visit, found.rows)))
    return fit_weights(tables)


def personal_settings(
    dataset: Dataset,
    snapshot: Snapshot,
    prompts: QueryPrompts,
    search: SearchBatch,
    beam_width: int,
    seed: int,
) -> dict[str, Any]:
    """What a checkpoint's `rescoring` says of users with a history: {} where the dataset has too
    few validation searches of such users, else their weights under `models.personal.PERSONAL`."""
    visits = [v for v in read_visits(dataset, "validation") if v.history]
    if len(visits) > MAX_FITTED_VISITS:
        random = np.random.default_rng(seed)
        chosen = np.sort(random.choice(len(visits), MAX_FITTED_VISITS, replace=False))
        visits = [visits[i] for i in chosen]
    taste = TasteTable.of(dataset.items)
    searcher = VisitSearch(snapshot, prompts, search, beam_width, taste)
    fitted = fit_personal(searcher, visits)
    return {} if fitted is None else {PERSONAL: fitted.to_json()}
