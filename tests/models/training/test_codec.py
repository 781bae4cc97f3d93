from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.codec import Codec, nearest
from index.encoder import unit_rows
from index.errors import ConfigError
from index.sid import SidLayout
from index.trie import Trie
from models.training import codec as codec_module
from models.training.codec import (
    BALANCE_SLACK,
    PUBLISHED,
    CodecSettings,
    balanced_assignment,
    candidate_recall,
    centroid_beam,
    choose_layout,
    layout_grid,
    train_codec,
)

DIMENSION = 8
NO_QUERIES = np.zeros((0, DIMENSION), np.float32)


def points(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around 12 centres."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((12, DIMENSION))
    chosen = centres[random.integers(12, size=count)]
    return unit_rows((chosen + 0.3 * random.standard_normal(chosen.shape)).astype(np.float32))


ITEMS = points(300)
QUERIES = points(100, seed=1)


def test_codes_are_what_the_codec_encodes():
    codec, codes = train_codec(ITEMS, QUERIES, CodecSettings((8, 4, 4), (4, 4)))
    assert codec.layout == SidLayout((8, 4, 4, 4, 4))
    assert codec.kinds == ("rq", "rq", "rq", "opq", "opq")
    np.testing.assert_array_equal(codes, codec.encode(ITEMS))


def test_every_level_brings_the_items_nearer():
    codec, codes = train_codec(ITEMS, QUERIES, CodecSettings((8, 8), (8, 8)))
    errors = [codec.quantisation_error(ITEMS, codes[:, :level]) for level in range(5)]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[1] < 0.4 * errors[0]


def test_a_first_level_finds_the_clusters():
    random = np.random.default_rng(5)
    truth = random.integers(6, size=200)
    centres = np.eye(DIMENSION)[:6]
    items = unit_rows((centres[truth] + 0.02 * random.standard_normal((200, 8))).astype("f4"))
    _, codes = train_codec(items, NO_QUERIES, CodecSettings((6, 2)))
    pairs = {(int(t), int(c)) for t, c in zip(truth, codes[:, 0], strict=True)}
    assert len(pairs) == 6


def test_training_is_deterministic():
    made = CodecSettings((8, 4, 4), (4, 4), balance_third_level=True)
    (first, codes), (second, again) = (train_codec(ITEMS, QUERIES, made) for _ in range(2))
    assert first.id == second.id
    np.testing.assert_array_equal(codes, again)


def test_queries_move_the_codebooks():
    with_queries, _ = train_codec(ITEMS, QUERIES, CodecSettings((8, 4)))
    without, _ = train_codec(ITEMS, NO_QUERIES, CodecSettings((8, 4)))
    assert with_queries.id != without.id


def test_product_levels_live_in_orthogonal_subspaces():
    codec, codes = train_codec(ITEMS, QUERIES, CodecSettings((8, 4), (16, 8)))
    left, right = codec.centroids[2:]
    np.testing.assert_allclose(left @ right.T, 0, atol=1e-5)
    assert np.linalg.matrix_rank(left, tol=1e-4) == DIMENSION // 2
    residual = ITEMS - codec.reconstruct(codes[:, :2])
    for level, book in ((2, left), (3, right)):
        basis = np.linalg.svd(book)[2][: DIMENSION // 2]
        half, codes_in_half = residual @ basis.T, book @ basis.T
        gaps = ((half[:, None] - codes_in_half) ** 2).sum(axis=2)
        chosen = gaps[np.arange(len(ITEMS)), codes[:, level]]
        np.testing.assert_allclose(chosen, gaps.min(axis=1), atol=1e-5)


def test_the_rotation_serves_the_product_levels():
    """Both halves say the same, so clustering them as they lie wastes one of the two codes."""
    random = np.random.default_rng(0)
    half = random.standard_normal((1000, 4))
    noise = 0.1 * random.standard_normal(half.shape)
    items = np.hstack([half, half + noise]).astype(np.float32)
    codec, codes = train_codec(items, items[:0], CodecSettings((1,), (16, 16)))
    plain = 0.0
    for columns in (items[:, :4], items[:, 4:]):
        made, chosen = train_codec(columns, columns[:0], CodecSettings((16,)))
        plain += made.quantisation_error(columns, chosen)
    assert codec.quantisation_error(items, codes) < 0.5 * plain


def test_products_of_more_dimensions_than_items():
    items = unit_rows(np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32))
    codec, codes = train_codec(items, items[:0], CodecSettings((4,), (8, 8)))
    np.testing.assert_allclose(codec.centroids[1] @ codec.centroids[2].T, 0, atol=1e-5)
    np.testing.assert_array_equal(codes, codec.encode(items))


def test_only_the_third_level_is_balanced():
    made = CodecSettings((4, 4, 8), balance_third_level=True)
    codec, codes = train_codec(ITEMS, QUERIES, made)
    most = np.bincount(codes[:, 2], minlength=8).max()
    assert most <= np.ceil(len(ITEMS) / 8 * BALANCE_SLACK)
    np.testing.assert_array_equal(codes[:, :2], codec.encode(ITEMS)[:, :2])
    plain, _ = train_codec(ITEMS, QUERIES, CodecSettings((4, 4, 8)))
    np.testing.assert_array_equal(plain.centroids[1], codec.centroids[1])
    assert np.bincount(plain.encode(ITEMS)[:, 2], minlength=8).max() > most


@pytest.mark.parametrize("items", [points(1), points(3), np.tile(points(1), (40, 1))])
@pytest.mark.parametrize("made", [CodecSettings((8, 4)), CodecSettings((8, 4, 4), (4, 4), True)])
def test_few_or_identical_items(items: np.ndarray, made: CodecSettings):
    codec, codes = train_codec(items, NO_QUERIES, made)
    assert codec.layout == made.layout
    assert all(np.isfinite(book).all() for book in codec.centroids)
    codec.layout.pack(codes)
    # faiss moves the centroids of identical points apart by a thousandth.
    np.testing.assert_allclose(codec.reconstruct(codes[:, :1]), items, atol=2e-3)


@pytest.mark.parametrize(
    ("items", "made", "message"),
    [
        (NO_QUERIES, CodecSettings((2,)), "at least one item"),
        (ITEMS, CodecSettings((2,), (4,)), "two product sizes"),
        (ITEMS[:, :7], CodecSettings((2,), (4, 4)), "dimension 7 is odd"),
        (ITEMS, CodecSettings(()), "1 to 26 levels"),
        (ITEMS, CodecSettings((1 << 17,)), "131072 codes"),
    ],
)
def test_layouts_that_cannot_work(items: np.ndarray, made: CodecSettings, message: str):
    with pytest.raises(ConfigError, match=message):
        train_codec(items, items[:0], made)


@settings(max_examples=60)
@given(
    count=st.integers(0, 70),
    size=st.integers(1, 9),
    slack=st.floats(1, 2),
    seed=st.integers(0, 1000),
    identical=st.booleans(),
)
def test_balanced_assignment_keeps_capacity(
    count: int, size: int, slack: float, seed: int, identical: bool
):
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, 3)).astype(np.float32)
    if identical:
        vectors[:] = 1
    book = random.standard_normal((size, 3)).astype(np.float32)
    chosen = balanced_assignment(vectors, book, slack)
    assert chosen.shape == (count,)
    assert np.bincount(chosen, minlength=size).max() <= np.ceil(count / size * slack)
    np.testing.assert_array_equal(chosen, balanced_assignment(vectors, book, slack))


def test_balanced_assignment_with_room_for_all_is_the_nearest():
    book = points(6, seed=3)
    np.testing.assert_array_equal(balanced_assignment(ITEMS, book, 6.0), nearest(ITEMS, book))


def test_the_closest_get_the_place():
    book = np.array([[1, 0], [0, 1]], np.float32)
    vectors = np.array([[1, 0.0], [1, 0.5], [1, 0.1], [0.9, 0.8]], np.float32)
    assert balanced_assignment(vectors, book, 1.0).tolist() == [0, 1, 0, 1]
    with pytest.raises(ConfigError, match="slack"):
        balanced_assignment(vectors, book, 0.9)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    book = points(6, seed=3)
    whole = balanced_assignment(ITEMS, book)
    monkeypatch.setattr(codec_module, "BALANCE_BLOCK", 7)
    np.testing.assert_array_equal(balanced_assignment(ITEMS, book), whole)


def brute_beam(codec: Codec, codes: np.ndarray, query: np.ndarray, beam: int) -> set[tuple]:
    """Beam search over centroid scores with Python sets of prefixes."""
    scores = codec.level_scores(query)
    kept: list[tuple] = [()]
    for level in range(codec.layout.levels):
        legal = {tuple(row[: level + 1]) for row in codes.tolist()}
        grown = [prefix for prefix in legal if prefix[:-1] in kept]
        grown.sort(key=lambda p: -sum(float(scores[i][code]) for i, code in enumerate(p)))
        kept = grown[:beam]
    return set(kept)


@pytest.mark.parametrize("beam", [1, 5, 1000])
def test_candidate_recall_against_brute_force(beam: int):
    codec, codes = train_codec(ITEMS, QUERIES, CodecSettings((8, 4, 4)))
    random = np.random.default_rng(0)
    relevant = [random.choice(300, random.integers(1, 6), replace=False) for _ in range(20)]
    found = candidate_recall(codec, codes, QUERIES[:20], relevant, [beam])
    recalls, counts = [], []
    for query, rows in zip(QUERIES[:20], relevant, strict=True):
        leaves = brute_beam(codec, codes, query, beam)
        recalls.append(np.mean([tuple(codes[row].tolist()) in leaves for row in rows]))
        counts.append(sum(tuple(row) in leaves for row in codes.tolist()))
    assert found[f"recall@beam{beam}"] == pytest.approx(np.mean(recalls))
    assert found[f"candidates@beam{beam}"] == pytest.approx(np.mean(counts))
    if beam == 1000:
        assert found["recall@beam1000"] == 1


def test_centroid_beam_is_best_first():
    codec, codes = train_codec(ITEMS, QUERIES, CodecSettings((8, 8)))
    trie = Trie.build(codec.layout, codec.layout.pack(codes))
    leaves = centroid_beam(codec, trie, QUERIES[0], 10)
    scores = codec.reconstruct(trie.codes_of_leaves(leaves)) @ QUERIES[0]
    assert (np.diff(scores) <= 1e-6).all()


@given(st.integers(1, 10**8))
def test_every_catalogue_size_has_valid_layouts(count: int):
    grid = layout_grid(count)
    assert grid
    for made in grid:
        assert made.layout.levels == len(made.residual_sizes) + len(made.product_sizes)
        assert max(made.residual_sizes) <= max(count, 1)


@pytest.mark.parametrize("count", [1, 16, 63, 64, 2_317_047, 3_000_000, 3_000_001, 10**8])
def test_layouts_at_the_edges(count: int):
    for made in layout_grid(count):
        SidLayout(made.residual_sizes + made.product_sizes)


def test_the_published_sizes():
    assert layout_grid(50_000_000) == [PUBLISHED]
    assert PUBLISHED.layout.level_sizes == (4096, 1024, 512, 256, 256)
    assert PUBLISHED.label == "RQ 4096-1024-512 L3-balanced + OPQ 256-256"
    assert layout_grid(54_667)[0].residual_sizes == (8192, 256)


def test_the_published_sizes_train_on_a_small_catalogue():
    codec, codes = train_codec(ITEMS[:50], NO_QUERIES, PUBLISHED)
    assert codec.layout == PUBLISHED.layout
    assert len(np.unique(codes, axis=0)) == 50


def test_the_layout_of_best_recall_is_chosen():
    grid = [CodecSettings((2, 2)), CodecSettings((32, 8)), CodecSettings((8, 4))]
    relevant = [np.argsort(-(ITEMS @ query))[:5] for query in QUERIES]
    codec, codes, table = choose_layout(ITEMS, QUERIES, relevant, grid, budget_items=60)
    recalls = [float(str(row["candidate_recall"])) for row in table]
    assert [row["layout"] for row in table] == [made.label for made in grid]
    assert len(set(recalls)) > 1
    chosen = grid[int(np.argmax(recalls))]
    assert codec.layout == chosen.layout
    expected, expected_codes = train_codec(ITEMS, NO_QUERIES, chosen)
    assert codec.id == expected.id
    np.testing.assert_array_equal(codes, expected_codes)


def test_layouts_are_compared_at_the_same_number_of_items():
    grid = [CodecSettings((4,)), CodecSettings((64, 4))]
    relevant = [np.argsort(-(ITEMS @ query))[:5] for query in QUERIES]
    _, _, table = choose_layout(ITEMS, QUERIES, relevant, grid, budget_items=75)
    assert [row["beam"] for row in table] == [
        round(75 / float(str(row["items_per_sid"]))) for row in table
    ]
    assert float(str(table[0]["candidates"])) < 3 * float(str(table[1]["candidates"]))


def test_without_validation_queries_the_first_layout_is_taken():
    grid = [CodecSettings((8, 4)), CodecSettings((16, 4))]
    codec, _, table = choose_layout(ITEMS, NO_QUERIES, [], grid)
    assert codec.layout == grid[0].layout
    assert [row["candidate_recall"] for row in table] == [0.0, 0.0]
    with pytest.raises(ConfigError, match="no layout"):
        choose_layout(ITEMS, NO_QUERIES, [], [])
