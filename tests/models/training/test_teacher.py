from typing import Any

import numpy as np
import pytest

from index.encoder import unit_rows
from models.training import teacher as teacher_module
from models.training.teacher import KNOWN_SHARE, SHARPNESS, Teacher

RANDOM = np.random.default_rng(0)
ITEMS = unit_rows(RANDOM.standard_normal((60, 16)).astype(np.float32))
QUERIES = unit_rows(RANDOM.standard_normal((9, 16)).astype(np.float32))
NAMES = [f"q{n}" for n in range(len(QUERIES))]
NOTHING = [()] * len(QUERIES)
BFLOAT16_ERROR = 2e-2


class Words:
    """Lexical scores by rule: row times ten for q1, nothing for the rest."""

    def scores(self, query: str, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        factor = 10.0 if query == "q1" else 0.0
        return (factor * rows).astype(np.float32)


def test_dense_top_is_exact_up_to_bfloat16():
    taught = Teacher(ITEMS, None, depth=10).teach(NAMES, QUERIES, NOTHING)
    assert taught.rows.shape == (9, 10)
    similarity = QUERIES @ ITEMS.T
    for query, rows in enumerate(taught.rows):
        assert len(set(rows.tolist())) == 10
        best = np.sort(similarity[query])[::-1][:10]
        np.testing.assert_allclose(similarity[query][rows], best, atol=BFLOAT16_ERROR)


def test_weights_are_a_softmax_of_similarity():
    taught = Teacher(ITEMS, None, depth=60, sharpness=5.0).teach(NAMES, QUERIES, NOTHING)
    scores = 5.0 * np.take_along_axis(QUERIES @ ITEMS.T, taught.rows, axis=1)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(taught.weights, expected, rtol=0.1)
    np.testing.assert_allclose(taught.weights.sum(axis=1), 1, atol=1e-6)


def test_lexical_scores_count_relative_to_the_best():
    plain = Teacher(ITEMS, None, depth=8).teach(NAMES, QUERIES, NOTHING)
    mixed = Teacher(ITEMS, Words(), depth=8, lexical_weight=0.5).teach(NAMES, QUERIES, NOTHING)
    np.testing.assert_array_equal(mixed.rows, plain.rows)
    np.testing.assert_allclose(mixed.weights[0], plain.weights[0], atol=1e-6)
    bonus = SHARPNESS * 0.5 * plain.rows[1] / plain.rows[1].max()
    expected = np.log(plain.weights[1]) + bonus
    found = np.log(mixed.weights[1])
    np.testing.assert_allclose(found - found.max(), expected - expected.max(), atol=1e-2)
    without = Teacher(ITEMS, Words(), depth=8, lexical_weight=0.0).teach(NAMES, QUERIES, NOTHING)
    np.testing.assert_array_equal(without.weights, plain.weights)


def test_known_items_hold_their_share():
    known: list[tuple[tuple[int, float], ...]] = [(), ((5, 1.0), (7, 3.0)), *NOTHING[2:]]
    plain = Teacher(ITEMS, None, depth=6).teach(NAMES, QUERIES, NOTHING)
    taught = Teacher(ITEMS, None, depth=6).teach(NAMES, QUERIES, known)
    assert taught.rows.shape == taught.weights.shape == (9, 8)
    np.testing.assert_allclose(taught.weights.sum(axis=1), 1, atol=1e-6)
    assert taught.rows[1, 6:].tolist() == [5, 7]
    np.testing.assert_allclose(taught.weights[1, 6:], [KNOWN_SHARE / 4, KNOWN_SHARE * 3 / 4])
    np.testing.assert_allclose(taught.weights[1, :6], plain.weights[1] * (1 - KNOWN_SHARE))
    np.testing.assert_allclose(taught.weights[0, :6], plain.weights[0])
    assert not taught.weights[0, 6:].any()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    whole = Teacher(ITEMS, None, depth=6).teach(NAMES, QUERIES, NOTHING)
    monkeypatch.setattr(teacher_module, "_BLOCK", 4)
    parts = Teacher(ITEMS, None, depth=6).teach(NAMES, QUERIES, NOTHING)
    np.testing.assert_allclose(parts.weights, whole.weights, atol=1e-6)


def test_a_catalogue_smaller_than_the_depth():
    taught = Teacher(ITEMS[:2], None).teach(NAMES, QUERIES, NOTHING)
    assert taught.rows.shape == (9, 2)
    assert sorted(taught.rows[0].tolist()) == [0, 1]


def test_a_query_without_features_gives_finite_weights():
    taught = Teacher(ITEMS, Words(), depth=4).teach(["q0"], np.zeros((1, 16), np.float32), [()])
    np.testing.assert_allclose(taught.weights, 0.25, atol=1e-6)
