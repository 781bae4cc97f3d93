"""The teacher that ranks: whose items it names, and by what."""

from __future__ import annotations

import numpy as np
import pytest

from index.encoder import unit_rows
from index.lexical import LexicalIndex
from index.text import words
from models.training.likelihood import QueryLikelihood
from models.training.ranking_teacher import (
    DENSE,
    KNOWN_SHARE,
    LEXICAL,
    LIKELIHOOD,
    SHARPNESS,
    WORDS,
    RankingTeacher,
)

TITLES = ["red desk", "white lavatory", "steel lamp", "red lamp", "oak desk", "sink"]
VECTORS = unit_rows(np.random.default_rng(3).standard_normal((6, 8)).astype(np.float32))
QUERIES = ["red lamp", "sink", "zebra"]
EMBEDDED = VECTORS[[3, 5, 0]]


@pytest.fixture(scope="module")
def lexical() -> LexicalIndex:
    return LexicalIndex.build(TITLES)


@pytest.fixture(scope="module")
def likelihood() -> QueryLikelihood:
    return QueryLikelihood.fit([words(title) for title in TITLES], [(["sink"], 1), (["lamp"], 3)])


def test_weights_are_a_softmax_of_the_ranking(lexical: LexicalIndex, likelihood: QueryLikelihood):
    taught = RankingTeacher(VECTORS, lexical, likelihood).teach(QUERIES, EMBEDDED, [()] * 3)
    every = np.arange(6)
    for i, query in enumerate(QUERIES):
        coverage = np.array(
            [len(set(words(query)) & set(words(title))) for title in TITLES], np.float32
        )
        # Of "red lamp" both words are in two titles each, so they weigh the same.
        coverage /= len(words(query))
        bound = max(lexical.upper_bound(query), 1e-6)
        score = (
            DENSE * VECTORS @ EMBEDDED[i]
            + LEXICAL * lexical.scores(query, every) / bound
            + WORDS * coverage
            + LIKELIHOOD * likelihood.scores(query, every)
        )
        expected = np.exp(SHARPNESS * score) / np.exp(SHARPNESS * score).sum()
        found = np.zeros(6)
        np.add.at(found, taught.rows[i], taught.weights[i])
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_what_is_known_has_its_share(lexical: LexicalIndex, likelihood: QueryLikelihood):
    teacher = RankingTeacher(VECTORS, lexical, likelihood)
    plain = teacher.teach(QUERIES, EMBEDDED, [()] * 3)
    taught = teacher.teach(QUERIES, EMBEDDED, [((4, 1.0),), (), ()])
    assert not teacher.wants_pairs
    assert taught.rows[0, -1] == 4
    assert taught.weights[0, -1] == pytest.approx(KNOWN_SHARE)
    np.testing.assert_allclose(taught.weights.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(taught.weights[1, :-1], plain.weights[1], atol=1e-6)
