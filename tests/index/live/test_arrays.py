import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index.live import arrays
from index.live.arrays import Column, Tail

values = st.floats(-9, 9) | st.just(np.nan)
steps = st.lists(
    st.tuples(st.dictionaries(st.integers(0, 30), values), st.integers(0, 3), st.integers(0, 3)),
    max_size=12,
)
"""Values written; how many are added; which state, counted from the newest, is folded ahead."""


@given(st.integers(0, 20), steps, st.integers(0, 6))
def test_a_column_reads_like_the_array_it_stands_for(
    n: int, given_steps: list[tuple[dict[int, float], int, int]], patched: int
) -> None:
    before = arrays.MAX_PATCHED_ROWS
    arrays.MAX_PATCHED_ROWS = patched
    try:
        plain = np.arange(n, dtype=np.float64)
        plain.flags.writeable = False
        column = Column.of(plain)
        states = [(column, plain)]
        for written, n_added, folded in given_steps:
            added = np.random.default_rng(n_added).random(n_added)
            plain = np.concatenate([plain, added])
            written = {row: value for row, value in written.items() if row < len(plain)}
            rows = np.array(sorted(written), dtype=np.int64)
            values = np.array([written[row] for row in rows.tolist()], dtype=np.float64)
            plain[rows] = values
            column = column.after(rows, values, added)
            states.append((column, plain))
            # Whoever folds ahead may have taken a state that is not the newest any more.
            states[max(0, len(states) - 1 - folded)][0].fold_ahead()
        for state, expected in states:
            assert len(state) == len(expected)
            np.testing.assert_array_equal(state.whole(), expected)
            rows = np.random.default_rng(0).permutation(len(expected))
            np.testing.assert_array_equal(state[rows], expected[rows])
            np.testing.assert_array_equal(state[expected > 2], expected[expected > 2])
    finally:
        arrays.MAX_PATCHED_ROWS = before


def test_a_copy_made_ahead_takes_the_patches_over() -> None:
    column = Column.of(np.zeros(100_000))
    for first in range(0, arrays.MAX_PATCHED_ROWS // 2, 1_024):
        rows = np.arange(first, first + 1_024)
        column = column.after(rows, np.full(1_024, 1.0), np.empty(0))
    before = column
    column.fold_ahead()
    column = column.after(np.array([7]), np.array([2.0]), np.ones(3))
    assert column.patched.tolist() == [7]
    assert before.plain[0] == 0.0 and before[np.array([0])] == 1.0
    assert column.whole().sum() == arrays.MAX_PATCHED_ROWS // 2 + 1 + 3


def test_what_a_tail_gave_stays() -> None:
    tail = Tail(np.empty((0, 2), dtype=np.float32))
    parts = [np.full((count, 2), count) for count in (1, 300, 0, 2, 700)]
    given_out = [tail.append(part) for part in parts]
    for count, state in enumerate(given_out, 1):
        np.testing.assert_array_equal(state, np.concatenate(parts[:count]))
