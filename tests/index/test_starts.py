import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.starts import Starts, StartsBuilder, packed_words

sizes_of_runs = st.one_of(
    st.lists(st.integers(1, 30_000), max_size=300),
    st.lists(st.integers(1, 3), max_size=600),
    st.lists(st.sampled_from([1, 2, 63, 64, 65, 200]), max_size=200),
    # From small steps to enormous ones, so that blocks shrink when many are filled.
    st.lists(st.integers(1, 3), min_size=100, max_size=300).map(
        lambda few: [*few, 65_536, 1, 70_000]
    ),
)


def plain_starts(sizes: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32)


def built(plain: np.ndarray, part: int) -> Starts:
    builder = StartsBuilder(len(plain))
    for first in range(0, len(plain), part):
        builder.append(plain[first : first + part])
    return builder.finish()


@settings(max_examples=100, deadline=None)  # the first one compiles
@given(sizes_of_runs, st.integers(1, 700))
def test_compact_starts_answer_like_plain_ones(sizes: list[int], part: int) -> None:
    plain = plain_starts(sizes)
    starts = built(plain, part)
    np.testing.assert_array_equal(starts.plain(), plain)
    np.testing.assert_array_equal(starts.at(np.arange(len(plain))), plain)
    values = np.unique(np.concatenate([plain, plain[1:] - 1])).astype(np.int64)
    expected = np.searchsorted(plain, values, side="right") - 1
    np.testing.assert_array_equal(starts.position_of(values), expected)


@pytest.mark.parametrize(
    ("sizes", "shift"),
    [([1000] * 64, 6), ([1000] * 63 + [3000, 1], 6), ([20_000] * 9, 2), ([65_536, 1, 1], 0)],
)
def test_blocks_are_as_large_as_their_differences_allow(sizes: list[int], shift: int) -> None:
    assert built(plain_starts(sizes), 7).shift == shift


@settings(max_examples=100, deadline=None)  # the first one compiles
@given(sizes_of_runs, st.sampled_from([0.0, 1e-4, 0.01, 0.3, 1.0]), st.integers(0, 2**32))
def test_set_bits_of_runs_equal_prefix_sums(sizes: list[int], share: float, seed: int) -> None:
    plain = plain_starts(sizes)
    bits = np.random.default_rng(seed).random(plain[-1]) < share
    found, words = built(plain, len(plain)).any_set(packed_words(bits))
    sums = np.concatenate([[0], np.cumsum(bits)])[plain]
    np.testing.assert_array_equal(found, sums[1:] != sums[:-1])
    np.testing.assert_array_equal(words, packed_words(found))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129, 300])
@pytest.mark.parametrize("before", [1, 63, 64])
def test_any_single_bit_of_a_run_is_seen(before: int, length: int) -> None:
    starts = built(plain_starts([before, length, 70]), 10)
    for position in range(before + length + 70):
        bits = np.zeros(before + length + 70, dtype=np.bool_)
        bits[position] = True
        found, _ = starts.any_set(packed_words(bits))
        run = int(starts.position_of(np.array([position]))[0])
        assert np.flatnonzero(found).tolist() == [run]
