import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import ConfigError
from index.sid import SidLayout

LAYOUTS = st.lists(st.integers(1, 5000), min_size=1, max_size=4).map(
    lambda sizes: SidLayout(tuple(sizes))
)


@st.composite
def layouts_with_codes(draw: st.DrawFn) -> tuple[SidLayout, np.ndarray]:
    layout = draw(LAYOUTS)
    sid = st.tuples(*(st.integers(0, size - 1) for size in layout.level_sizes))
    rows = draw(st.lists(sid, max_size=30))
    return layout, np.array(rows, dtype=np.int32).reshape(-1, layout.levels)


@given(layouts_with_codes())
def test_pack_and_unpack_are_inverse(case: tuple[SidLayout, np.ndarray]) -> None:
    layout, codes = case
    keys = layout.pack(codes)
    assert keys.dtype == np.uint64
    unpacked = layout.unpack(keys)
    assert unpacked.dtype == np.int32
    np.testing.assert_array_equal(unpacked, codes)


@given(layouts_with_codes())
def test_sorted_keys_are_lexicographic_sids(case: tuple[SidLayout, np.ndarray]) -> None:
    layout, codes = case
    in_key_order = codes[np.argsort(layout.pack(codes), kind="stable")]
    assert in_key_order.tolist() == sorted(codes.tolist())


@given(layouts_with_codes())
def test_text_round_trip(case: tuple[SidLayout, np.ndarray]) -> None:
    layout, codes = case
    for row in codes:
        assert layout.parse(layout.format(row)) == tuple(row)


def test_published_layout() -> None:
    layout = SidLayout((4096, 1024, 512, 256, 256))
    assert layout.levels == 5
    assert layout.bits == (12, 10, 9, 8, 8)
    assert layout.shifts == (35, 25, 16, 8, 0)
    assert layout.format([4095, 0, 3, 7, 255]) == "<a_4095><b_0><c_3><d_7><e_255>"
    assert SidLayout.from_json(layout.to_json()) == layout


def test_all_64_bits_can_be_used() -> None:
    layout = SidLayout((65536,) * 4)
    codes = np.array([[65535] * 4, [0] * 4, [65535, 0, 0, 1]])
    np.testing.assert_array_equal(layout.unpack(layout.pack(codes)), codes)
    assert layout.pack(codes)[0] == np.uint64(2**64 - 1)


@pytest.mark.parametrize("sizes", [(), (0,), (65537,), (65536,) * 5, (2,) * 27])
def test_impossible_layouts_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        SidLayout(sizes)


@pytest.mark.parametrize("codes", [[[1, 4]], [[-1, 0]], [[0]], [[0.5, 0.5]]])
def test_codes_outside_the_layout_are_refused(codes: list[list[float]]) -> None:
    with pytest.raises(ConfigError):
        SidLayout((2, 4)).pack(np.array(codes))


@pytest.mark.parametrize(
    "text", ["", "<a_1>", "<b_1><a_1>", "<a_2><b_0>", "<a_1><b_01>", " <a_1><b_1>", "<a_1>x<b_1>"]
)
def test_parse_takes_whole_sids_of_the_layout_only(text: str) -> None:
    with pytest.raises(ConfigError):
        SidLayout((2, 4)).parse(text)
