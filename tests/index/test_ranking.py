import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index.ranking import best_rows


@given(st.lists(st.integers(-3, 3), max_size=60), st.integers(0, 70))
def test_best_rows_is_a_stable_sort_cut_at_k(values: list[int], k: int) -> None:
    scores = np.array(values, dtype=np.float32)
    expected = sorted(range(len(values)), key=lambda row: (-values[row], row))[:k]
    assert best_rows(scores, k).tolist() == expected
