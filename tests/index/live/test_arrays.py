import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index.live import arrays
from index.live.arrays import Column, Tail

steps = st.lists(
    st.tuples(st.dictionaries(st.integers(0, 30), st.floats(-9, 9)), st.integers(0, 3)), max_size=12
)


@given(st.integers(0, 20), steps, st.integers(0, 6))
def test_a_column_reads_like_the_array_it_stands_for(
    n: int, given_steps: list[tuple[dict[int, float], int]], patched: int
) -> None:
    before = arrays.MAX_PATCHED_ROWS
    arrays.MAX_PATCHED_ROWS = patched
    try:
        plain = np.arange(n, dtype=np.float64)
        plain.flags.writeable = False
        column = Column.of(plain)
        states = [(column, plain)]
        for written, n_added in given_steps:
            added = np.random.default_rng(n_added).random(n_added)
            plain = np.concatenate([plain, added])
            written = {row: value for row, value in written.items() if row < len(plain)}
            rows = np.array(sorted(written), dtype=np.int64)
            values = np.array([written[row] for row in rows.tolist()], dtype=np.float64)
            plain[rows] = values
            column = column.after(rows, values, added)
            states.append((column, plain))
        for state, expected in states:
            assert len(state) == len(expected)
            np.testing.assert_array_equal(state.whole(), expected)
            rows = np.random.default_rng(0).permutation(len(expected))
            np.testing.assert_array_equal(state[rows], expected[rows])
            np.testing.assert_array_equal(state[expected > 2], expected[expected > 2])
    finally:
        arrays.MAX_PATCHED_ROWS = before


def test_what_a_tail_gave_stays() -> None:
    tail = Tail(np.empty((0, 2), dtype=np.float32))
    parts = [np.full((count, 2), count) for count in (1, 300, 0, 2, 700)]
    given_out = [tail.append(part) for part in parts]
    for count, state in enumerate(given_out, 1):
        np.testing.assert_array_equal(state, np.concatenate(parts[:count]))
