import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.vllm.legal import DeviceTrie
from index.sid import SidLayout
from index.trie import Trie


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 5, 300]), min_size=1, max_size=4).map(tuple),
    count=st.integers(1, 200),
    seed=st.integers(0, 1000),
)
def test_the_codes_that_continue_a_prefix(sizes, count, seed):
    layout, random = SidLayout(sizes), np.random.default_rng(seed)
    codes = np.column_stack([random.integers(0, size, count) for size in sizes])
    trie = DeviceTrie(Trie.build(layout, layout.pack(codes)), torch.device("cpu"))
    sids = {tuple(sid) for sid in codes.tolist()}
    # Prefixes that there are, and drawn ones.
    other = np.column_stack([random.integers(0, size, count) for size in sizes])
    asked = torch.from_numpy(np.concatenate([codes, other])).long()
    for level, size in enumerate(sizes):
        found = torch.ones((len(asked), size), dtype=torch.bool)
        trie.legal(level, asked, found)
        for row, prefix in zip(found, asked[:, :level].tolist(), strict=True):
            expected = {sid[level] for sid in sids if list(sid[:level]) == prefix}
            assert set(row.nonzero()[:, 0].tolist()) == expected


def test_a_trie_of_nothing_allows_nothing():
    layout = SidLayout((4, 4))
    trie = DeviceTrie(Trie.build(layout, np.zeros(0, dtype=np.uint64)), torch.device("cpu"))
    for level in range(2):
        found = torch.ones((3, 4), dtype=torch.bool)
        trie.legal(level, torch.zeros((3, 2), dtype=torch.int64), found)
        assert not found.any()


@pytest.mark.parametrize("rows", [1, 100])
def test_operations_do_not_grow_with_rows(tiny_trie, rows):
    trie = DeviceTrie(tiny_trie, torch.device("cpu"))
    codes = torch.zeros((rows, 3), dtype=torch.int64)
    out = torch.zeros((rows, 16), dtype=torch.bool)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trie.legal(2, codes, out)
    calls = sum(event.count for event in profile.key_averages() if event.key.startswith("aten::"))
    assert 10 < calls < 100
