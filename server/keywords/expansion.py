"""Pseudo-relevance expansion: concepts that the best items of a query have more often than others.

    score(c) = p_R(c) · log( p_R(c) / p(c) )

p_R(c): share of the feedback items that have the concept, each weighted by its place, rank^-½;
p(c): share of all items. This is the contribution of c to the Kullback–Leibler divergence between
the two (Carpineto et al. 2001), over concepts in place of words. Items with something refused give
no feedback, and no refused concept is proposed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.attribute_types import AttributeType
from server.keywords.refusal import Refusal
from server.keywords.vocabulary import Vocabulary

MIN_FEEDBACK_ITEMS = 2
MIN_FEEDBACK_SHARE = 0.1
# What is proposed says what the thing is or is for; nobody asked for the colour most items have.
EXPANSION_TYPES = frozenset((AttributeType.ENTITY, AttributeType.FUNCTION, AttributeType.SCENE))


class Proposal(NamedTuple):
    """A concept's number and how strongly it is proposed."""

    number: int
    score: float


def feedback_scores(
    rows: NDArray[np.int64], refusal: Refusal, vocabulary: Vocabulary
) -> dict[int, float]:
    """Positive scores of concepts over feedback items, best first."""
    rows = rows[refusal.allowed(rows)]
    if len(rows) < MIN_FEEDBACK_ITEMS:
        return {}
    weight = 1.0 / np.sqrt(np.arange(len(rows)) + 1.0)
    weight /= weight.sum()
    position, concepts = vocabulary.items.gather(rows)
    numbers, inverse, counts = np.unique(concepts, return_inverse=True, return_counts=True)
    share = np.bincount(inverse, weights=weight[position], minlength=len(numbers))
    background = vocabulary.frequency[numbers] / max(vocabulary.n_read, 1)
    scores = share * np.log(share / background)
    good = (scores > 0) & (counts >= MIN_FEEDBACK_ITEMS) & (share >= MIN_FEEDBACK_SHARE)
    order = np.argsort(-scores[good], kind="stable")
    return dict(zip(numbers[good][order].tolist(), scores[good][order].tolist(), strict=True))


def propose(
    sources: list[tuple[float, dict[int, float]]],
    refusal: Refusal,
    vocabulary: Vocabulary,
    limit: int,
) -> list[Proposal]:
    """The best concepts of weighted sources (each: weight, scores), refused ones left out."""
    total: dict[int, float] = {}
    for weight, scores in sources:
        for number, score in scores.items():
            total[number] = total.get(number, 0.0) + weight * score
    best = sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))
    found: list[Proposal] = []
    for number, score in best:
        if len(found) == limit:
            break
        allowed_type = vocabulary.concepts[number].type in EXPANSION_TYPES
        if allowed_type and not refusal.has_concept(number):
            found.append(Proposal(number, score))
    return found
