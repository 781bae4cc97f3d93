import numpy as np
import pytest

from index.errors import ConfigError
from index.rescoring import (
    FEATURES,
    OUTSIDE_BEAM_MARGIN,
    RescoringWeights,
    fit,
    price_feature,
    rank,
    reciprocal_rank_fusion,
    score,
    sid_feature,
)

Examples = list[tuple[np.ndarray, np.ndarray]]


def drawn_from(weights: np.ndarray, seed: int, queries: int = 400) -> Examples:
    """Lists whose one relevant item is drawn from softmax(x @ weights)."""
    rng = np.random.default_rng(seed)
    examples: Examples = []
    for _ in range(queries):
        x = rng.standard_normal((12, len(FEATURES))) * [3.0, 0.1, 0.3, 1.0, 1.0, 0.3]
        x += rng.standard_normal(len(FEATURES)) * 5  # a level per query says nothing
        logits = x @ weights
        chances = np.exp(logits - logits.max())
        grades = np.zeros(12)
        grades[rng.choice(12, p=chances / chances.sum())] = 1
        examples.append((x.astype(np.float32), grades))
    return examples


def test_fit_recovers_the_weights_the_data_came_from() -> None:
    truth = np.array([0.5, 15.0, 4.0, -0.3, 0.4, 6.0])
    fitted = fit(drawn_from(truth, 0, 3000), regularisation=0.0).vector()
    np.testing.assert_allclose(fitted, truth, rtol=0.2, atol=0.08)


def test_fit_stops_where_the_gradient_is_zero_and_repeats_itself() -> None:
    examples = drawn_from(np.array([0.5, 15.0, 4.0, 0.3, 0.0, 2.0]), 1)
    first, second = fit(examples), fit(examples)
    assert first == second
    assert first.version == second.version != "default"

    def loss(w: np.ndarray) -> float:
        total = 0.0
        for x, grades in examples:
            logits = x.astype(np.float64) @ w
            total -= grades @ (logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
        return total

    free = fit(examples, regularisation=0.0).vector().astype(np.float64)
    for column in range(len(FEATURES)):
        for step in (-0.05, 0.05):
            moved = free.copy()
            moved[column] *= 1 + step
            assert loss(moved) >= loss(free) - 1e-4


def test_evidence_never_gets_a_negative_weight() -> None:
    fitted = fit(drawn_from(np.array([-0.5, -5.0, 4.0, -0.5, -0.5, -2.0]), 2))
    assert fitted.sid == 0
    assert fitted.dense == 0
    assert fitted.lexical > 0
    assert fitted.popularity < 0
    assert fitted.price < 0
    assert fitted.words == 0


def test_a_constant_column_gets_no_weight() -> None:
    examples = drawn_from(np.array([0.0, 15.0, 4.0, 0.3, 0.0, 2.0]), 3, 50)
    for x, _ in examples:
        x[:, 0] = 0
    assert fit(examples).sid == 0


def test_larger_grades_pull_harder() -> None:
    x = np.zeros((2, len(FEATURES)), dtype=np.float32)
    x[0, 2] = 1.0
    mild = fit([(x, np.array([2.0, 1.0]))]).lexical
    strong = fit([(x, np.array([9.0, 1.0]))]).lexical
    assert 0 < mild < strong


def test_fit_needs_something_to_learn_from() -> None:
    x = np.zeros((2, len(FEATURES)), dtype=np.float32)
    for examples in ([], [(x, np.zeros(2))], [(x[:1], np.ones(1))]):
        with pytest.raises(ConfigError, match="nothing to fit"):
            fit(examples)


def test_rank_breaks_ties_by_row() -> None:
    x = np.zeros((4, len(FEATURES)), dtype=np.float32)
    x[2, 1] = 0.5
    weights = RescoringWeights()
    assert score(x, weights).tolist() == [0, 0, 10, 0]
    assert rank(x, weights, np.array([9, 4, 7, 1])).tolist() == [2, 3, 1, 0]


def test_rows_outside_the_beam_get_the_floor() -> None:
    scores = np.array([-2.0, np.nan, -5.0, -np.inf], dtype=np.float32)
    floor = -5.0 - OUTSIDE_BEAM_MARGIN
    assert sid_feature(scores).tolist() == [-2, floor, -5, floor]
    assert sid_feature(scores[1:2]).tolist() == [0]


def test_price_prior_by_hand() -> None:
    prices = np.array([10.0, 10.0, 10.0 * np.e, np.nan, 1e9, 10.0])
    similarity = np.array([0.9, 0.8, 0.7, 0.95, 0.1, 0.85], dtype=np.float32)
    np.testing.assert_allclose(price_feature(prices, similarity), [0, 0, -1, 0, -3, 0], atol=1e-6)
    assert not price_feature(prices[2:5], similarity[2:5]).any()


def test_reciprocal_rank_fusion_by_hand() -> None:
    rows, scores = reciprocal_rank_fusion([np.array([5, 3]), np.array([3, 8])], k=60)
    assert rows.tolist() == [3, 5, 8]
    np.testing.assert_allclose(scores, [1 / 62 + 1 / 61, 1 / 61, 1 / 62], rtol=1e-6)
    tied, _ = reciprocal_rank_fusion([np.array([2]), np.array([1])])
    assert tied.tolist() == [1, 2]
    assert len(reciprocal_rank_fusion([])[0]) == 0


def test_weights_round_trip() -> None:
    weights = RescoringWeights(1, 2, 3, 4, 5, 6, "v")
    assert RescoringWeights.from_json(weights.to_json()) == weights
    assert weights.vector().tolist() == [1, 2, 3, 4, 5, 6]
    before = weights.to_json()
    del before["words"]
    assert RescoringWeights.from_json(before).words == 0
    with pytest.raises(ConfigError, match="number"):
        RescoringWeights.from_json({"sid": "x"})
