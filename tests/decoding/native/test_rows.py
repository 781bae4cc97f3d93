import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.native.rows import BLOCK_SLOTS, PADDING, Rows
from decoding.native.sizes import rounded


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any),
    heads=st.integers(1, 6),
)
@settings(max_examples=100, deadline=None)
def test_every_row_and_head_has_its_own_slot_in_its_prompts_block(counts, heads):
    rows = Rows.of(counts, heads)
    slots = rows.first[:, None] + np.arange(heads) * rows.stride[:, None]
    assert len(np.unique(slots)) == sum(counts) * heads
    assert slots.max() < rows.slots
    owner = np.repeat(np.arange(len(counts)), counts)
    seen = padded = 0
    for block in rows.blocks:
        assert block.rows.start == seen
        seen = block.rows.stop
        inside = slots[block.rows] - block.slot
        width = block.widest
        # (prompts, heads, widest): prompt, head and row can be read off the slot.
        assert np.array_equal(
            inside // (heads * width),
            np.repeat((owner[block.rows] - block.prompts.start), heads).reshape(-1, heads),
        )
        assert np.array_equal(inside // width % heads, np.tile(np.arange(heads), (len(inside), 1)))
        mine = counts[block.prompts]
        assert len(mine).bit_count() == 1
        padded += len(mine) * max(mine)
        assert width == rounded(max(mine))
        assert len(mine) == 1 or len(mine) * max(mine) * heads <= BLOCK_SLOTS
    assert seen == sum(counts)
    assert padded <= (1 + PADDING) * sum(counts)


def test_equal_widths_share_a_block_and_different_ones_do_not():
    assert [block.widest for block in Rows.of([32] * 8, 4).blocks] == [32]
    # 50 and 80 waste less than a quarter together.
    assert [block.widest for block in Rows.of([10, 50, 80, 512], 4).blocks] == [16, 80, 512]
