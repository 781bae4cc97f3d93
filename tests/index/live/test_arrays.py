import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index.live.arrays import Column, Tail

values = st.floats(-9, 9) | st.just(np.nan)
steps = st.lists(
    st.tuples(st.dictionaries(st.integers(0, 30), values), st.integers(0, 300), st.integers(0, 3)),
    max_size=12,
)
"""Values written; how many are added; which state, counted from the newest, is read then."""


@given(st.integers(0, 20), steps, st.booleans())
def test_a_column_reads_like_the_array_it_stands_for(
    n: int, given_steps: list[tuple[dict[int, float], int, int]], owns: bool
) -> None:
    plain = np.arange(n, dtype=np.float64)
    plain.flags.writeable = False
    column = Column.of(plain)
    if owns:
        column.own()
    states = [(column, plain)]
    for written, n_added, read in given_steps:
        added = np.random.default_rng(n_added).random(n_added)
        plain = np.concatenate([plain, added])
        written = {row: value for row, value in written.items() if row < len(plain)}
        rows = np.array(sorted(written), dtype=np.int64)
        plain[rows] = np.array([written[row] for row in rows.tolist()], dtype=np.float64)
        column = column.after(rows, plain[rows], added)
        states.append((column, plain))
        state, expected = states[max(0, len(states) - 1 - read)]
        np.testing.assert_array_equal(state.whole(), expected)
    for state, expected in states:
        assert len(state) == len(expected)
        np.testing.assert_array_equal(state.whole(), expected)
        rows = np.random.default_rng(0).permutation(len(expected))
        np.testing.assert_array_equal(state[rows], expected[rows])
        np.testing.assert_array_equal(state[expected > 2], expected[expected > 2])


def test_what_a_column_was_made_of_is_not_written() -> None:
    plain = np.zeros(9)
    first = Column.of(plain).after(np.array([1]), np.ones(1), np.empty(0))
    assert first.newest.tolist() == [0, 1, *[0] * 7] and not plain.any()
    second = first.after(np.array([1, 2]), np.full(2, 2.0), np.full(1, 9.0))
    assert [part.tolist() for part in first.changed_since()] == [[1, 2], [1, 0]]
    assert first.whole().sum() == 1 and second.whole().sum() == 13
    assert not len(second.changed_since()[0])


def test_a_state_is_read_while_others_are_made() -> None:
    n, rows = 50, np.arange(0, 50, 5)
    newest = [(Column.of(np.zeros(n)), 0.0)]
    newest[0][0].own()
    stop = threading.Event()

    def change() -> None:
        number = 0.0
        while not stop.is_set():
            number += 1.0
            column = newest[0][0].after(rows, np.full(len(rows), number), np.empty(0))
            newest[0] = column, number

    writer = threading.Thread(target=change)
    writer.start()
    try:
        for _ in range(1_000):
            column, number = newest[0]
            for _ in range(5):
                assert (column[rows] == number).all()
                assert column.whole().sum() == number * len(rows)
    finally:
        stop.set()
        writer.join()


def test_what_a_tail_gave_stays() -> None:
    tail = Tail(np.empty((0, 2), dtype=np.float32))
    parts = [np.full((count, 2), count) for count in (1, 300, 0, 2, 700)]
    given_out = [tail.append(part) for part in parts]
    for count, state in enumerate(given_out, 1):
        np.testing.assert_array_equal(state, np.concatenate(parts[:count]))
