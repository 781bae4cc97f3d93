from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index import codec as codec_module
from index.codec import Codec, half_square_norms, nearest, surely_nearest, usage_report
from index.errors import ArtifactError, ConfigError
from index.sid import SidLayout

SIZES = (5, 4, 3)
DIMENSION = 6


def codec(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> Codec:
    random = np.random.default_rng(seed)
    books = tuple(random.standard_normal((size, DIMENSION)).astype(np.float32) for size in sizes)
    return Codec(SidLayout(sizes), books, ("rq",) * len(sizes))


def points(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)


def distances(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Squared distances (N, K), the plain way."""
    return ((vectors[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)


@given(seed=st.integers(0, 10_000), count=st.integers(0, 40))
def test_encode_is_greedy_nearest(seed: int, count: int):
    made, vectors = codec(seed), points(count, seed + 1)
    codes = made.encode(vectors)
    assert (codes.shape, codes.dtype) == ((count, 3), np.int32)
    residual = vectors.astype(np.float64)
    for level, book in enumerate(made.centroids):
        gaps = distances(residual, book)
        chosen = gaps[np.arange(count), codes[:, level]]
        np.testing.assert_allclose(chosen, gaps.min(axis=1), atol=1e-5)
        residual = residual - book[codes[:, level]]


def test_ties_go_to_the_smaller_code():
    book = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert nearest(np.array([[1, 0], [0.5, 0.5]], np.float32), book).tolist() == [0, 0]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    vectors, book = points(101), points(7, seed=2)
    whole = nearest(vectors, book)
    np.testing.assert_array_equal(whole, distances(vectors, book).argmin(axis=1))
    monkeypatch.setattr(codec_module, "_NEAREST_BLOCK_SCORES", 7 * 10)
    np.testing.assert_array_equal(nearest(vectors, book), whole)
    made = codec()
    codes = made.encode(vectors)
    monkeypatch.setattr(codec_module, "_ENCODE_BLOCK", 8)
    np.testing.assert_array_equal(made.encode(vectors), codes)


def test_reconstruction_is_the_sum_of_centroids():
    made = codec()
    codes = np.array([[4, 0, 2], [1, 3, 0]], np.int32)
    first, second, third = made.centroids
    expected = first[[4, 1]] + second[[0, 3]] + third[[2, 0]]
    np.testing.assert_allclose(made.reconstruct(codes), expected, atol=1e-6)
    np.testing.assert_allclose(made.reconstruct(codes[:, :1]), first[[4, 1]], atol=0)
    assert not made.reconstruct(codes[:, :0]).any()


def test_quantisation_error_by_hand():
    made = Codec(SidLayout((2,)), (np.array([[0, 0], [2, 0]], np.float32),), ("rq",))
    vectors = np.array([[1, 1], [2, 3]], np.float32)
    codes = np.array([[0], [1]], np.int32)
    assert made.quantisation_error(vectors, codes) == pytest.approx((2 + 9) / 2)


def test_level_scores_are_inner_products():
    made, query = codec(), points(1)[0]
    scores = made.level_scores(query)
    assert [len(level) for level in scores] == list(SIZES)
    expected = sum(float(made.centroids[level][2] @ query) for level in range(3))
    assert sum(float(level[2]) for level in scores) == pytest.approx(expected, abs=1e-5)


def test_product_levels_are_nearest_in_each_half():
    """Codebooks in orthogonal subspaces: greedy over whole vectors = nearest in each subspace."""
    random = np.random.default_rng(3)
    rotation, _ = np.linalg.qr(random.standard_normal((DIMENSION, DIMENSION)))
    halves = [random.standard_normal((8, DIMENSION // 2)) for _ in range(2)]
    zero = np.zeros_like(halves[0])
    left, right = np.hstack([halves[0], zero]), np.hstack([zero, halves[1]])
    books = tuple((book @ rotation).astype(np.float32) for book in (left, right))
    made = Codec(SidLayout((8, 8)), books, ("opq", "opq"))
    vectors = points(50)
    rotated = vectors @ rotation.T
    expected = [
        distances(rotated[:, part * 3 : part * 3 + 3], halves[part]).argmin(axis=1)
        for part in (0, 1)
    ]
    np.testing.assert_array_equal(made.encode(vectors), np.stack(expected, axis=1))


def test_half_square_norms_by_hand():
    assert half_square_norms(np.array([[3, 4], [0, 1]], np.float32)).tolist() == [12.5, 0.5]


def test_usage_report_by_hand():
    codes = np.array([[0, 0, 1], [0, 0, 1], [0, 1, 0], [3, 1, 0]], np.int32)
    assert usage_report(codes, (4, 2, 2)) == {
        "items": 4,
        "CUR_L1": 2 / 4,
        "CUR_L1xL2": 3 / 8,
        "CUR_total": 3 / 16,
        "paths_L1": 2,
        "paths_L2": 3,
        "paths_L3": 3,
        "sids": 3,
        "items_per_sid": 4 / 3,
        "ICR": 2 / 4,
    }
    one_level = usage_report(codes[:, :1], (4,))
    assert one_level["CUR_total"] == 0.5
    assert usage_report(codes[:0], (4, 2, 2))["ICR"] == 0


def test_an_opened_codec_is_the_same(tmp_path: Path):
    made = codec()
    made.save(tmp_path / "c")
    opened = Codec.open(tmp_path / "c")
    assert (opened.layout, opened.kinds, opened.id) == (made.layout, made.kinds, made.id)
    vectors = points(20)
    np.testing.assert_array_equal(opened.encode(vectors), made.encode(vectors))


def test_the_id_follows_the_codebooks():
    books = [book.copy() for book in codec().centroids]
    assert codec().id == codec().id
    books[2][0, 0] += 1e-3
    assert Codec(SidLayout(SIZES), tuple(books), ("rq",) * 3).id != codec().id


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="do not fit layout"):
        Codec(SidLayout((5, 4, 2)), codec().centroids, ("rq",) * 3)
    with pytest.raises(ConfigError, match=r"expects \(N, 6\)"):
        codec().encode(np.zeros((2, 5), np.float32))


def test_damage_is_named(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"holds no codec\.json"):
        Codec.open(tmp_path)
    codec().save(tmp_path)
    (tmp_path / "level_1.npy").unlink()
    with pytest.raises(ArtifactError, match=r"level_1\.npy is missing"):
        Codec.open(tmp_path)
    codec().save(tmp_path)
    np.save(tmp_path / "level_2.npy", np.zeros((2, DIMENSION), np.float32))
    with pytest.raises(ArtifactError, match=r"do not fit codec\.json"):
        Codec.open(tmp_path)
    (tmp_path / "codec.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"codec\.json cannot be read"):
        Codec.open(tmp_path)


@given(seed=st.integers(0, 10_000), size=st.integers(1, 60))
def test_a_code_does_not_depend_on_its_company(seed: int, size: int):
    # Half of the points lie between two centroids, as far from one as from the other but for the
    # last digit.
    book, vectors = points(9, seed), points(64, seed + 1)
    pairs = np.random.default_rng(seed).integers(9, size=(32, 2))
    vectors[:32] = (book[pairs[:, 0]] + book[pairs[:, 1]]) / 2
    whole = surely_nearest(vectors, book)
    parts = [surely_nearest(vectors[at : at + size], book) for at in range(0, 64, size)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    gaps = distances(vectors, book)
    np.testing.assert_allclose(gaps[np.arange(64), whole], gaps.min(axis=1), atol=1e-12)


def test_of_equal_centroids_the_first_is_nearest():
    book = np.repeat(points(3), 4, axis=0)
    np.testing.assert_array_equal(surely_nearest(book, book), np.arange(12) // 4 * 4)
    nothing = np.zeros((2, DIMENSION), np.float32)
    np.testing.assert_array_equal(surely_nearest(nothing, np.zeros_like(book)), [0, 0])
