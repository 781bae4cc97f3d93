"""Every method that `evaluate` compares: which candidates it ranks, and with which weights.

    generative       the served ranking: items of the beam's SIDs and those that dense and lexical
                     search find beside them, rescored
    generative_beam  the items of the beam's SIDs alone, rescored
    generative_only  items by their own probability: that of the SID, shared evenly by its items
    codec_only       what is served, without a decoder: SIDs nearest by centroid, as many items of
                     them as the beam gave, and the same retrieved ones, rescored
    codec_beam       the items of those SIDs alone, rescored
    bm25             lexical, tuned for product titles
    dense            exact search with the snapshot's encoder
    hybrid           reciprocal rank fusion of bm25 and dense
    hybrid_rescored  the top of bm25 and dense together, rescored without a SID score

Each rescored method has weights of its own, fitted in the same way on the same queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Hypotheses, Prompt
from index.rescoring import RescoringWeights, fit, reciprocal_rank_fusion
from index.snapshot import Snapshot
from models.query import QueryPrompts
from models.ranking import (
    RETRIEVED,
    Candidates,
    Ranked,
    candidates_of,
    rank_candidates,
    with_retrieved,
)

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
SearchBatch = Callable[[Sequence[Prompt], int], list[Hypotheses]]

SERVED = "generative"
RESCORED = (SERVED, "generative_beam", "codec_only", "codec_beam", "hybrid_rescored")
METHODS = (SERVED, "generative_only", "codec_only", "bm25", "dense", "hybrid")
EXTRA_METHODS = ("generative_beam", "codec_beam", "hybrid_rescored")
FUSION_DEPTH = 300
SEARCH_BATCH = 16
CODEC_LEAVES_MARGIN = 4
_NOTHING = Candidates(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Searchers:
    """What answers the queries: a snapshot, prompts, an engine's batch search, and the weights of
    each method of RESCORED (the defaults where a method has none)."""

    snapshot: Snapshot
    prompts: QueryPrompts
    search: SearchBatch
    beam_width: int
    weights: Mapping[str, RescoringWeights]
    retrieved: int = RETRIEVED

    def weights_of(self, method: str) -> RescoringWeights:
        return self.weights.get(method, RescoringWeights())


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Queries, their embeddings (N, d), and what the engine said of each (or nothing)."""

    texts: list[str]
    embeddings: FloatArray
    hypotheses: list[Hypotheses]


def needs_beam(method: str) -> bool:
    """Whether a method cannot be computed without the engine's answers."""
    return method.startswith(("generative", "codec"))


def embedded(searchers: Searchers, texts: Sequence[str]) -> Answers:
    """Queries without asking the engine."""
    return Answers(list(texts), searchers.snapshot.embed_queries(texts), [])


def answer(
    searchers: Searchers,
    texts: Sequence[str],
    progress: Callable[[str, int, int], None] | None = None,
) -> Answers:
    """Embeddings and hypotheses of queries, in batches."""
    asked = embedded(searchers, texts)
    hypotheses: list[Hypotheses] = []
    for start in range(0, len(texts), SEARCH_BATCH):
        part = slice(start, start + SEARCH_BATCH)
        chosen = asked.texts[part]
        prompts = searchers.prompts.prompts(chosen, asked.embeddings[part], [()] * len(chosen))
        hypotheses += searchers.search(prompts, searchers.beam_width)
        if progress is not None:
            progress("searching", len(hypotheses), len(texts))
    return Answers(asked.texts, asked.embeddings, hypotheses)


def fit_weights(
    searchers: Searchers, relevant: Mapping[str, IntArray]
) -> dict[str, RescoringWeights]:
    """Weights of each method of RESCORED, fitted on these queries.

    Only queries with a relevant item among the candidates teach anything; with none the defaults
    are given.
    """
    texts = list(relevant)
    answers = answer(searchers, texts)
    fitted: dict[str, RescoringWeights] = {}
    for method in RESCORED:
        examples: list[tuple[FloatArray, FloatArray]] = []
        for i, text in enumerate(texts):
            ranked = _rescored(method, searchers, answers, i, None)
            gains = np.isin(ranked.rows, relevant[text]).astype(np.float32)
            if gains.any():
                examples.append((ranked.features, gains))
        fitted[method] = fit(examples) if examples else RescoringWeights()
    return fitted


def ranker(
    method: str, searchers: Searchers, answers: Answers, fixed_budget: int | None = None
) -> Callable[[int], tuple[IntArray, int]]:
    """query number → (ranked rows, number of candidates).

    `fixed_budget`: items of the nearest SIDs where there is no beam to count them from.
    """
    snapshot = searchers.snapshot

    def rescored(i: int) -> tuple[IntArray, int]:
        rows = _rescored(method, searchers, answers, i, fixed_budget).rows
        return rows, len(rows)

    def generative_only(i: int) -> tuple[IntArray, int]:
        rows = by_probability(snapshot, answers.hypotheses[i])
        return rows, len(rows)

    def bm25(i: int) -> tuple[IntArray, int]:
        rows, _ = snapshot.lexical.search(answers.texts[i], FUSION_DEPTH)
        return rows, len(rows)

    def dense(i: int) -> tuple[IntArray, int]:
        rows, _ = snapshot.dense.search(answers.embeddings[i][None], FUSION_DEPTH)
        return rows[0], len(rows[0])

    def hybrid(i: int) -> tuple[IntArray, int]:
        rows, _ = reciprocal_rank_fusion([bm25(i)[0], dense(i)[0]])
        return rows, len(rows)

    plain = {"generative_only": generative_only, "bm25": bm25, "dense": dense, "hybrid": hybrid}
    return plain.get(method, rescored)


def by_probability(snapshot: Snapshot, beam: Hypotheses) -> IntArray:
    """The items of a beam by log P(SID) − log (items of the SID), then by popularity."""
    found = candidates_of(snapshot, beam.leaves, beam.scores)
    sharing = np.bincount(found.hypothesis, minlength=len(beam.leaves))[found.hypothesis]
    order = np.argsort(-(found.sid_scores - np.log(sharing)), kind="stable")
    return found.rows[order]


def _rescored(
    method: str, searchers: Searchers, answers: Answers, i: int, budget: int | None
) -> Ranked:
    """Query i's candidates of one method of RESCORED, in its order."""
    snapshot, text, embedding = searchers.snapshot, answers.texts[i], answers.embeddings[i]
    inside = _NOTHING
    if needs_beam(method) and answers.hypotheses:
        beam = answers.hypotheses[i]
        inside = candidates_of(snapshot, beam.leaves, beam.scores)
        budget = len(inside.rows)
    if method.startswith("codec"):
        assert budget is not None
        inside = _nearest(searchers, embedding, budget)
    retrieved = 0 if method.endswith("_beam") else searchers.retrieved
    candidates = with_retrieved(snapshot, text, embedding, inside, None, retrieved)
    weights = searchers.weights_of(method)
    return rank_candidates(snapshot, weights, text, embedding, candidates)


def _nearest(searchers: Searchers, embedding: FloatArray, budget: int) -> Candidates:
    """Items of the SIDs nearest by centroid, the first `budget` of them."""
    snapshot = searchers.snapshot
    wanted = max(CODEC_LEAVES_MARGIN * searchers.beam_width, 1)
    while True:
        leaves, scores = snapshot.candidate_sids(embedding, wanted)
        found = candidates_of(snapshot, leaves, scores)
        if len(found.rows) >= budget or wanted >= snapshot.trie.n_leaves:
            break
        wanted *= 2
    return Candidates(found.rows[:budget], found.sid_scores[:budget], found.hypothesis[:budget])
