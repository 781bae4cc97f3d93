"""Query likelihood, by hand."""

from __future__ import annotations

import numpy as np

from models.training.likelihood import FLOOR, SMOOTHING, QueryLikelihood

TITLES = [["lavatory", "white"], ["desk", "white"], ["desk", "lamp", "lamp"], []]
PAIRS = [(["bathroom", "sink"], 0), (["sink"], 0), (["desk"], 1)]


def test_words_count_by_how_often_pairs_join_them():
    likelihood = QueryLikelihood.fit(TITLES, PAIRS)
    found = likelihood.scores("sink", np.array([0, 1, 2, 3]))
    lavatory, white = 2 / (2 + SMOOTHING), 2 / (3 + SMOOTHING)
    expected = [np.mean([lavatory, white]), np.mean([0, white]), 0.0, 0.0]
    np.testing.assert_allclose(found, np.log(np.array(expected) + FLOOR), rtol=1e-5)


def test_a_query_is_the_mean_of_its_words():
    likelihood = QueryLikelihood.fit(TITLES, PAIRS)
    rows = np.array([0, 2])
    both = likelihood.scores("bathroom sink", rows)
    each = [likelihood.scores(word, rows) for word in ("bathroom", "sink")]
    np.testing.assert_allclose(both, np.mean(each, axis=0), rtol=1e-5)


def test_unknown_words_and_no_words():
    likelihood = QueryLikelihood.fit(TITLES, PAIRS)
    rows = np.array([1, 3])
    np.testing.assert_allclose(likelihood.scores("zebra", rows), np.log(FLOOR), rtol=1e-5)
    assert likelihood.scores("", rows).tolist() == [0.0, 0.0]
    nobody = QueryLikelihood.fit(TITLES, [])
    np.testing.assert_allclose(nobody.scores("sink", rows), np.log(FLOOR), rtol=1e-5)
