from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import ConfigError
from index.postings import Postings

LEAVES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=40)


def build(pairs: list[tuple[int, int]]) -> Postings:
    leaves = np.array([leaf for leaf, _ in pairs], dtype=np.int64)
    popularity = np.array([value for _, value in pairs], dtype=np.float64)
    return Postings.build(leaves, 7, popularity)


@given(LEAVES, st.lists(st.integers(0, 6), max_size=10))
def test_rows_of_equals_brute_force(pairs: list[tuple[int, int]], leaves: list[int]) -> None:
    rows, index_of_leaf = build(pairs).rows_of(np.array(leaves, dtype=np.int64))
    expected = [
        (row, position)
        for position, leaf in enumerate(leaves)
        for row in sorted(
            (row for row, pair in enumerate(pairs) if pair[0] == leaf),
            key=lambda row: (-pairs[row][1], row),
        )
    ]
    assert list(zip(rows.tolist(), index_of_leaf.tolist(), strict=True)) == expected


@given(LEAVES, st.integers(0, 2**32 - 1))
def test_leaf_mask_equals_brute_force(pairs: list[tuple[int, int]], seed: int) -> None:
    item_mask = np.random.default_rng(seed).random(len(pairs)) < 0.3
    allowed = {pairs[row][0] for row in np.flatnonzero(item_mask)}
    assert build(pairs).leaf_mask(item_mask).tolist() == [leaf in allowed for leaf in range(7)]


def test_round_trip(tmp_path: Path) -> None:
    built = build([(3, 1), (0, 0), (3, 2)])
    built.save(tmp_path)
    opened = Postings.open(tmp_path)
    assert opened.rows.tolist() == [1, 2, 0]
    assert opened.leaf_of_row.tolist() == [3, 0, 3]
    assert opened.counts().tolist() == [1, 0, 0, 2, 0, 0, 0]
    assert (opened.n_items, opened.n_leaves) == (3, 7)


def test_wrong_leaves_are_refused() -> None:
    with pytest.raises(ConfigError, match="leaf_of_row"):
        Postings.build(np.array([7]), 7, np.zeros(1))
    with pytest.raises(ConfigError, match="popularities"):
        Postings.build(np.array([1]), 7, np.zeros(2))
