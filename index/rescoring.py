"""Rescoring: one score per candidate item from a handful of features.

score(i) = ⟨weights, features(i)⟩, with the columns

    sid         log-probability of the item's SID; items outside the beam get the lowest one of the
                beam − OUTSIDE_BEAM_MARGIN
    dense       cosine of query and item embedding
    lexical     BM25 / its upper bound for the query (Σ idf of the query's tokens): in [0, 1)
                whatever the candidates are
    popularity  log(1 + popularity), z-scored over the catalogue
    price       −|log price − log median price of the PRICE_ANCHORS most similar candidates|, at
                least −MAX_PRICE_DISTANCE; 0 where unknown
    words       share of the query's words that the item's text has, weighted by idf, near spellings
                counted in part (`LexicalIndex.coverage`)

The weights are fitted by listwise softmax regression: with targets t ∝ grade,

    loss = −Σ_q Σ_i t_qi · log softmax_q(⟨w, x_qi⟩) / queries + REGULARISATION · ‖w in unit scale‖²

subject to w ≥ 0 for sid, dense, lexical and words. It is convex; projected gradient descent with
backtracking finds the same minimum every time. The gateway and the offline evaluation call the very
same functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.catalogue import Catalogue
from index.errors import ConfigError

FEATURES = ("sid", "dense", "lexical", "popularity", "price", "words")
NON_NEGATIVE = np.array([True, True, True, False, False, True])
OUTSIDE_BEAM_MARGIN = 1.0
PRICE_ANCHORS = 10
MIN_PRICE_ANCHORS = 3
MAX_PRICE_DISTANCE = 3.0
REGULARISATION = 1e-3
MAX_FIT_STEPS = 500
FIT_TOLERANCE = 1e-10
FUSION_K = 60


@dataclass(frozen=True, slots=True)
class RescoringWeights:
    """One weight per feature. The defaults are for a checkpoint that has not been fitted."""

    sid: float = 1.0
    dense: float = 20.0
    lexical: float = 5.0
    popularity: float = 0.1
    price: float = 0.0
    words: float = 0.0
    version: str = "default"

    def vector(self) -> NDArray[np.float32]:
        """Weights in the order of FEATURES, float32 (F,)."""
        return np.array([getattr(self, name) for name in FEATURES], dtype=np.float32)

    @classmethod
    def from_vector(cls, vector: NDArray[np.floating[Any]]) -> RescoringWeights:
        """Weights in the order of FEATURES; the version is a digest of them."""
        values = [float(value) for value in vector]
        version = hashlib.sha256(repr(values).encode()).hexdigest()[:8]
        return cls(*values, version=version)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RescoringWeights:
        """Raises ConfigError when a weight is missing or no number.

        Weights that were fitted without `words` have none for it.
        """
        try:
            values = {name: float(data[name]) for name in FEATURES if name != "words"}
            values["words"] = float(data.get("words", 0.0))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"rescoring weights need a number for each of {FEATURES}") from error
        return cls(**values, version=str(data.get("version", "unnamed")))


def features(
    query_embedding: NDArray[np.float32],
    query_text: str,
    rows: NDArray[np.integer[Any]],
    leaf_scores_of_rows: NDArray[np.float32] | None,
    catalogue: Catalogue,
    *,
    with_words: bool = True,
) -> NDArray[np.float32]:
    """Features of the candidate items, float32 (n, F), columns as in FEATURES.

    `query_embedding` (d,); `rows` (n,) item rows; `leaf_scores_of_rows` (n,) log-probability of
    each row's hypothesis, NaN or −inf for rows found outside the beam, None without a beam. Without
    words their column, which costs most, is 0.
    """
    result = np.zeros((len(rows), len(FEATURES)), dtype=np.float32)
    if leaf_scores_of_rows is not None:
        result[:, 0] = sid_feature(leaf_scores_of_rows)
    result[:, 1] = catalogue.dense.similarity(query_embedding, rows)
    bound = catalogue.lexical.upper_bound(query_text)
    if bound > 0:
        result[:, 2] = catalogue.lexical.scores(query_text, rows) / bound
    result[:, 3] = catalogue.items.popularity_score[rows]
    result[:, 4] = price_feature(catalogue.items.price[rows], result[:, 1])
    if with_words:
        result[:, 5] = catalogue.lexical.coverage(query_text, rows)
    return result


def sid_feature(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probabilities (n,) with those outside the beam (NaN or −inf) at the floor."""
    inside = np.isfinite(scores)
    if not inside.any():
        return np.zeros(len(scores), dtype=np.float32)
    floor = scores[inside].min() - OUTSIDE_BEAM_MARGIN
    return np.where(inside, scores, floor).astype(np.float32)


def price_feature(
    prices: NDArray[np.float64], similarity: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How far prices (n,) lie from those of the most similar candidates, float32 (n,), ≤ 0."""
    known = np.flatnonzero(prices > 0)
    if len(known) < MIN_PRICE_ANCHORS:
        return np.zeros(len(prices), dtype=np.float32)
    logs = np.log(prices[known])
    nearest = np.argsort(-similarity[known], kind="stable")[:PRICE_ANCHORS]
    distance = np.minimum(np.abs(logs - np.median(logs[nearest])), MAX_PRICE_DISTANCE)
    result = np.zeros(len(prices), dtype=np.float32)
    result[known] = -distance
    return result


def score(features: NDArray[np.float32], weights: RescoringWeights) -> NDArray[np.float32]:
    """Scores of features (n, F), float32 (n,)."""
    return features @ weights.vector()


def rank(
    features: NDArray[np.float32], weights: RescoringWeights, rows: NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    """Order of the candidates, best first, int64 (n,); equal scores go by the smaller row."""
    return np.lexsort((rows, -score(features, weights)))


def reciprocal_rank_fusion(
    ranked: Sequence[NDArray[np.integer[Any]]], k: int = FUSION_K
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Fuse rankings of rows: score = Σ 1 / (k + rank), rank from 1.

    Returns the distinct rows, best first (ties by row), and their scores. Source: Cormack, Clarke,
    Büttcher 2009.
    """
    if not ranked:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    gains = [1.0 / (k + 1 + np.arange(len(rows))) for rows in ranked]
    rows, position = np.unique(np.concatenate(ranked).astype(np.int64), return_inverse=True)
    fused = np.bincount(position, weights=np.concatenate(gains), minlength=len(rows))
    order = np.lexsort((rows, -fused))
    return rows[order], fused[order].astype(np.float32)


def fit(
    examples: Sequence[tuple[NDArray[np.float32], NDArray[np.floating[Any]]]],
    *,
    regularisation: float = REGULARISATION,
) -> RescoringWeights:
    """Weights fitted on examples, one (features (n, F), grades (n,)) per query.

    Grades are gains: 0 is not relevant, twice the grade is worth twice as much. Queries without two
    candidates or without a gain teach nothing and are left out. Raises ConfigError if none is left.
    """
    return RescoringWeights.from_vector(
        fit_vector(examples, NON_NEGATIVE, regularisation=regularisation)
    )


def fit_vector(
    examples: Sequence[tuple[NDArray[np.float32], NDArray[np.floating[Any]]]],
    non_negative: NDArray[np.bool_],
    *,
    regularisation: float = REGULARISATION,
) -> NDArray[np.float64]:
    """`fit` over any columns, float64 (F,); those of `non_negative` (F,) stay at 0 or above."""
    useful = [
        (x.astype(np.float64), np.maximum(grades, 0).astype(np.float64))
        for x, grades in examples
        if len(grades) > 1 and np.max(grades) > 0
    ]
    if not useful:
        raise ConfigError("no query has two candidates and a relevant one; nothing to fit on")
    lists = _Lists(useful)
    return lists.minimise(non_negative, regularisation) / lists.scale


class _Lists:
    """Candidate lists laid end to end, standardised within queries."""

    def __init__(self, examples: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
        self.start = np.cumsum([0, *(len(x) for x, _ in examples[:-1])])
        self.lengths = np.array([len(x) for x, _ in examples])
        centred = np.concatenate([x - x.mean(axis=0) for x, _ in examples])
        spread = np.sqrt(np.mean(centred**2, axis=0))
        self.scale = np.where(spread > 1e-9, spread, 1.0)
        self.x = centred / self.scale
        self.targets = np.concatenate([gains / gains.sum() for _, gains in examples])

    def loss(self, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Mean listwise cross-entropy and its gradient (F,)."""
        logits = self.x @ weights
        logits -= np.repeat(np.maximum.reduceat(logits, self.start), self.lengths)
        exponentials = np.exp(logits)
        totals = np.add.reduceat(exponentials, self.start)
        loss = np.log(totals).sum() - self.targets @ logits
        difference = exponentials / np.repeat(totals, self.lengths) - self.targets
        return float(loss) / len(self.start), difference @ self.x / len(self.start)

    def minimise(
        self, constrained: NDArray[np.bool_], regularisation: float
    ) -> NDArray[np.float64]:
        """Projected gradient descent; the step doubles after a success, halves until it succeeds.

        A step succeeds when the loss falls by at least a quarter of what the gradient promises.
        """
        weights = np.zeros(self.x.shape[1])
        step = 1.0

        def regularised(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            value, slope = self.loss(w)
            return value + regularisation * float(w @ w), slope + 2 * regularisation * w

        value, slope = regularised(weights)
        for _ in range(MAX_FIT_STEPS):
            while True:
                proposal = weights - step * slope
                proposal[constrained] = np.maximum(proposal[constrained], 0.0)
                moved = proposal - weights
                new_value, new_slope = regularised(proposal)
                if new_value <= value + 0.25 * float(slope @ moved) or step < 1e-12:
                    break
                step /= 2
            done = value - new_value <= FIT_TOLERANCE * abs(value)
            weights, value, slope = proposal, new_value, new_slope
            if done:
                break
            step *= 2
        return weights
