from pathlib import Path

import numpy as np
import pytest

from index.dense import DenseIndex
from index.errors import ConfigError


def unit(rng: np.random.Generator, n: int, d: int = 24) -> np.ndarray:
    vectors = rng.standard_normal((n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def index() -> DenseIndex:
    return DenseIndex.build(unit(np.random.default_rng(0), 6000))


@pytest.mark.parametrize("n_queries", [1, 7, 30])
@pytest.mark.parametrize("share", [None, 1.0, 0.9, 0.02, 0.001, 0.0])
def test_search_is_exact_under_any_mask(
    index: DenseIndex, share: float | None, n_queries: int
) -> None:
    rng = np.random.default_rng(1)
    queries = unit(rng, n_queries)
    mask = None if share is None else rng.random(index.n_items) < share
    allowed = np.arange(index.n_items) if mask is None else np.flatnonzero(mask)
    rows, scores = index.search(queries, 50, mask)
    k = min(50, len(allowed))
    assert rows.shape == scores.shape == (n_queries, k)
    oracle = queries @ index.embeddings.astype(np.float32).T
    for position in range(n_queries):
        order = allowed[np.argsort(-oracle[position, allowed], kind="stable")[:k]]
        assert rows[position].tolist() == order.tolist()
        np.testing.assert_allclose(scores[position], oracle[position, order], atol=1e-6)


def test_round_trip_and_similarity(index: DenseIndex, tmp_path: Path) -> None:
    index.save(tmp_path)
    opened = DenseIndex.open(tmp_path)
    query = unit(np.random.default_rng(2), 1)
    rows, scores = opened.search(query, 5)
    np.testing.assert_allclose(opened.similarity(query[0], rows[0]), scores[0], atol=1e-6)
    assert opened.similarity(query[0], np.empty(0, dtype=np.int64)).shape == (0,)


def test_blocks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch, index: DenseIndex) -> None:
    queries = unit(np.random.default_rng(7), 20)
    whole = index.search(queries, 30)[0]
    monkeypatch.setattr("index.dense._BLOCK_ROWS", 1000)
    np.testing.assert_array_equal(index.search(queries, 30)[0], whole)
    mask = np.random.default_rng(8).random(index.n_items) < 0.4
    in_blocks = index.search(queries, 30, mask)[0]
    monkeypatch.undo()
    np.testing.assert_array_equal(index.search(queries, 30, mask)[0], in_blocks)


def test_more_asked_than_there_is() -> None:
    small = DenseIndex.build(unit(np.random.default_rng(3), 3))
    rows, _ = small.search(unit(np.random.default_rng(4), 2), 10)
    assert sorted(rows[0].tolist()) == [0, 1, 2]
    assert small.search(np.empty((0, 24), dtype=np.float32), 2)[0].shape == (0, 2)


def test_equal_scores_go_by_row() -> None:
    same = DenseIndex.build(np.repeat(unit(np.random.default_rng(5), 1), 4, axis=0))
    assert same.search(unit(np.random.default_rng(6), 1), 4)[0].tolist() == [[0, 1, 2, 3]]


def test_shapes_that_do_not_fit_are_refused(index: DenseIndex) -> None:
    with pytest.raises(ConfigError, match="queries"):
        index.search(np.zeros((1, 3), dtype=np.float32), 1)
    with pytest.raises(ConfigError, match="mask"):
        index.search(np.zeros((1, 24), dtype=np.float32), 1, np.ones(5, dtype=np.bool_))
