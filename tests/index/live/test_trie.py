import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import ConfigError
from index.live.trie import LiveTrie
from index.sid import SidLayout
from index.trie import Trie


@st.composite
def live_tries(draw: st.DrawFn) -> tuple[LiveTrie, list[tuple[int, ...]]]:
    """A live trie grown in several batches, and all its SIDs in order."""
    sizes = tuple(draw(st.lists(st.integers(1, 400), min_size=1, max_size=4)))
    layout = SidLayout(sizes)
    sid = st.tuples(*(st.integers(0, min(size, 4) - 1) for size in sizes))
    wide_sid = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    some = st.lists(st.one_of(sid, wide_sid), max_size=25)

    def keys(sids: list[tuple[int, ...]]) -> np.ndarray:
        return layout.pack(np.array(sids, dtype=np.int64).reshape(-1, layout.levels))

    base = draw(some)
    batches = draw(st.lists(some, max_size=3))
    trie = LiveTrie.of(Trie.build(layout, keys(base)), keys([]))
    for batch in batches:
        trie = trie.extended(keys(batch))
    return trie, sorted({*base, *(sid for batch in batches for sid in batch)})


def walk(trie: LiveTrie) -> list[dict[int, tuple[int, ...]]]:
    """The prefix of every node of each level, found from the root down."""
    reached: list[dict[int, tuple[int, ...]]] = []
    above: dict[int, tuple[int, ...]] = {0: ()}
    for level in range(trie.layout.levels):
        below: dict[int, tuple[int, ...]] = {}
        for node, prefix in above.items():
            one = np.array([node])
            runs = [trie.added_children(level - 1, one)]
            if level:
                runs.append(trie.children(level - 1, one))
            else:
                runs.append((np.array([0]), np.array([trie.base.node_counts[0]])))
            for first, end in runs:
                children = np.arange(first[0], end[0])
                codes = trie.codes_at(level, children).tolist()
                assert codes == sorted(set(codes))
                for child, code in zip(children.tolist(), codes, strict=True):
                    assert child not in below
                    below[child] = (*prefix, code)
        reached.append(below)
        above = below
    return reached


@given(live_tries())
def test_every_node_is_reached_once_and_has_a_prefix_of_its_own(
    case: tuple[LiveTrie, list[tuple[int, ...]]],
) -> None:
    trie, sids = case
    for level, nodes in enumerate(walk(trie)):
        assert sorted(nodes) == list(range(trie.node_counts[level]))
        assert sorted(nodes.values()) == sorted({sid[: level + 1] for sid in sids})
        assert trie.added[level].codes.dtype == np.uint16
        assert np.all(np.diff(trie.added[level].parents) > 0)


@given(live_tries())
def test_keys_leaves_and_codes_agree(case: tuple[LiveTrie, list[tuple[int, ...]]]) -> None:
    trie, sids = case
    leaves = np.arange(trie.n_leaves)
    codes = trie.codes_of_leaves(leaves)
    assert sorted(map(tuple, codes.tolist())) == sids
    last = walk(trie)[-1]
    assert [last[leaf] for leaf in leaves.tolist()] == [tuple(row) for row in codes.tolist()]
    np.testing.assert_array_equal(trie.layout.pack(codes), trie.keys)
    np.testing.assert_array_equal(trie.find(trie.keys), leaves)
    absent = np.setdiff1d(trie.keys ^ np.uint64(1), trie.keys)
    assert (trie.find(absent) == -1).all()


@given(live_tries())
def test_growing_in_steps_equals_growing_at_once(
    case: tuple[LiveTrie, list[tuple[int, ...]]],
) -> None:
    trie, _ = case
    whole = LiveTrie.of(trie.base, trie.keys)
    assert whole.node_counts == trie.node_counts
    for one, other in zip(whole.added, trie.added, strict=True):
        np.testing.assert_array_equal(one.parents, other.parents)
        np.testing.assert_array_equal(one.starts, other.starts)
        np.testing.assert_array_equal(one.codes, other.codes)


@given(live_tries(), st.integers(0, 2**32))
def test_filter_bits_equal_brute_force(
    case: tuple[LiveTrie, list[tuple[int, ...]]], seed: int
) -> None:
    trie, _ = case
    mask = np.random.default_rng(seed).random(trie.n_leaves) < 0.4
    result = trie.filter(mask)
    assert result.n_leaves == mask.sum()
    allowed_sids = [tuple(row) for row in trie.codes_of_leaves(np.flatnonzero(mask)).tolist()]
    for level, nodes in enumerate(walk(trie)):
        allowed = {sid[: level + 1] for sid in allowed_sids}
        expected = [nodes[node] in allowed for node in range(trie.node_counts[level])]
        assert result.bits[level].tolist() == expected


def test_wrong_input_is_refused() -> None:
    layout = SidLayout((3, 3))
    trie = LiveTrie.of(Trie.build(layout, np.array([1], dtype=np.uint64)), np.array([2]))
    for key in (3, 12, 2**40):
        with pytest.raises(ConfigError, match="layout"):
            trie.extended(np.array([key], dtype=np.uint64))
    with pytest.raises(ConfigError, match="mask"):
        trie.filter(np.zeros(1, dtype=np.bool_))
    assert trie.extended(trie.keys) is trie
