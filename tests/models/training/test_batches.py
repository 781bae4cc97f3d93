import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.training.batches import tight_order


def rows_of(lengths: list[int], row: int) -> list[list[int]]:
    """Next-fit: what packing makes of an order."""
    rows: list[list[int]] = [[]]
    for length in lengths:
        if sum(rows[-1]) + length > row:
            rows.append([])
        rows[-1].append(length)
    return rows


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_a_tight_order_is_a_permutation_that_never_needs_more_rows(lengths: list[int]):
    order = tight_order(np.array(lengths), 64)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    tight = rows_of([lengths[i] for i in order], 64)
    assert len(tight) <= 11 / 9 * max(1, -(-sum(lengths) // 64)) * 2
    assert len(tight) <= len(rows_of(sorted(lengths, reverse=True), 64))


def test_short_examples_leave_hardly_any_room():
    lengths = np.random.default_rng(0).integers(12, 24, size=1024)
    order = tight_order(lengths, 64)
    used = len(rows_of(lengths[order].tolist(), 64)) * 64
    assert used < 1.06 * lengths.sum()
    assert len(rows_of(lengths.tolist(), 64)) * 64 > 1.1 * lengths.sum()


def test_an_example_longer_than_a_row_has_one_of_its_own():
    assert tight_order(np.array([3, 100, 60]), 64).tolist() == [1, 2, 0]
