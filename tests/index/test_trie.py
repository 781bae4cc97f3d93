from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import ArtifactError, ConfigError
from index.sid import SidLayout
from index.trie import Trie

PUBLISHED = SidLayout((4096, 1024, 512, 256, 256))


@st.composite
def tries(draw: st.DrawFn) -> tuple[Trie, np.ndarray]:
    """A trie and its distinct codes in SID order. Few codes a level, so that prefixes are shared"""
    sizes = tuple(draw(st.lists(st.integers(1, 400), min_size=1, max_size=5)))
    layout = SidLayout(sizes)
    sid = st.tuples(*(st.integers(0, min(size, 5) - 1) for size in sizes))
    wide_sid = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    rows = draw(st.lists(st.one_of(sid, wide_sid), max_size=60))
    codes = np.array(rows, dtype=np.int32).reshape(-1, layout.levels)
    return Trie.build(layout, layout.pack(codes)), np.unique(codes, axis=0)


def assert_structure(trie: Trie, codes: np.ndarray) -> None:
    """Every array against prefixes taken from the codes themselves."""
    prefixes = [
        sorted({tuple(row[: level + 1]) for row in codes.tolist()})
        for level in range(trie.layout.levels)
    ]
    assert trie.node_counts == tuple(map(len, prefixes))
    for level, nodes in enumerate(prefixes):
        assert trie.codes[level].tolist() == [node[-1] for node in nodes]
        assert len(trie.leaf_start[level]) == len(nodes) + 1
        first, end = trie.leaf_ranges(level, np.arange(len(nodes)))
        np.testing.assert_array_equal(first, trie.leaf_start[level][:-1])
        np.testing.assert_array_equal(end, trie.leaf_start[level][1:])
        for node, low, high in zip(nodes, first, end, strict=True):
            members = [i for i, row in enumerate(codes.tolist()) if tuple(row[: level + 1]) == node]
            assert list(range(low, high)) == members
        if level + 1 < trie.layout.levels:
            start = trie.child_start[level]
            assert start.dtype == np.uint32
            for i, node in enumerate(nodes):
                children = prefixes[level + 1][start[i] : start[i + 1]]
                assert children
                assert all(child[:-1] == node for child in children)
            assert start[0] == 0
            assert start[-1] == len(prefixes[level + 1])


@given(tries())
def test_nodes_are_the_distinct_prefixes_in_order(case: tuple[Trie, np.ndarray]) -> None:
    assert_structure(*case)


@given(tries())
def test_keys_leaves_and_codes_agree(case: tuple[Trie, np.ndarray]) -> None:
    trie, codes = case
    keys = trie.layout.pack(codes)
    np.testing.assert_array_equal(trie.keys, keys)
    leaves = np.arange(trie.n_leaves)
    np.testing.assert_array_equal(trie.find(keys), leaves)
    found = trie.codes_of_leaves(leaves[::-1])
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, codes[::-1])


@given(tries(), st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_only_legal_keys_are_found(case: tuple[Trie, np.ndarray], others: list[int]) -> None:
    trie, _ = case
    legal = {int(key): leaf for leaf, key in enumerate(trie.keys)}
    near = [key ^ 1 for key in legal] + others
    found = trie.find(np.array(near, dtype=np.uint64))
    assert found.tolist() == [legal.get(key, -1) for key in near]


@given(tries(), st.randoms(use_true_random=False))
def test_filter_bits_equal_brute_force(case: tuple[Trie, np.ndarray], random: object) -> None:
    trie, codes = case
    generator = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    mask = generator.random(trie.n_leaves) < generator.choice([0.03, 0.3, 0.9])
    result = trie.filter(mask)
    assert result.n_leaves == mask.sum()
    for level, bits in enumerate(result.bits):
        nodes = sorted({tuple(row[: level + 1]) for row in codes.tolist()})
        allowed = {tuple(row[: level + 1]) for row in codes[mask].tolist()}
        assert bits.tolist() == [node in allowed for node in nodes]


ADVERSARIAL = {
    "empty": np.empty((0, 5), dtype=np.int64),
    "one item": np.array([[4095, 1023, 511, 255, 255]]),
    "one child everywhere": np.repeat(np.arange(300)[:, None], 5, axis=1) % 256,
    "all under one prefix": np.stack([np.full(256, 7)] * 4 + [np.arange(256)], axis=1),
    "root with 4096 children": np.stack([np.arange(4096)] + [np.zeros(4096, int)] * 4, axis=1),
}


@pytest.mark.parametrize("codes", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_adversarial_shapes_survive_a_round_trip(codes: np.ndarray, tmp_path: Path) -> None:
    built = Trie.build(PUBLISHED, PUBLISHED.pack(codes))
    built.save(tmp_path / "trie")
    trie = Trie.open(tmp_path / "trie")
    distinct = np.unique(codes, axis=0)
    if len(distinct) <= 300:
        assert_structure(trie, distinct)
    np.testing.assert_array_equal(trie.keys, PUBLISHED.pack(distinct))
    np.testing.assert_array_equal(trie.find(trie.keys), np.arange(trie.n_leaves))
    np.testing.assert_array_equal(trie.codes_of_leaves(np.arange(trie.n_leaves)), distinct)
    nothing = trie.filter(np.zeros(trie.n_leaves, dtype=np.bool_))
    assert not any(bits.any() for bits in nothing.bits)
    everything = trie.filter(np.ones(trie.n_leaves, dtype=np.bool_))
    assert all(bits.all() for bits in everything.bits)
    assert trie.bytes_per_sid == built.bytes_per_sid


def test_nodes_too_large_for_sixteen_bit_differences() -> None:
    layout = SidLayout((8, 65536, 2))
    codes = np.array([[a, b, 0] for a in range(2) for b in range(65536)] + [[5, 3, 1]])
    trie = Trie.build(layout, layout.pack(codes))
    assert trie.starts[0].shift < 6
    assert trie.child_start[0].tolist() == [0, 65536, 131072, 131073]
    np.testing.assert_array_equal(trie.codes_of_leaves(np.arange(len(codes))), codes)


def test_chunks_of_the_build_join_without_a_seam() -> None:
    layout = SidLayout((64, 64, 256))
    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(0, 2**20, 700_000).astype(np.uint64))
    assert len(keys) > 1 << 18
    trie = Trie.build(layout, keys, assume_sorted=True)
    np.testing.assert_array_equal(trie.keys, keys)
    for level in range(2):
        expected = np.unique(keys >> np.uint64(layout.shifts[level]), return_index=True)[1]
        np.testing.assert_array_equal(trie.leaf_start[level][:-1], expected)


def test_a_million_scattered_sids_take_twelve_bytes_each() -> None:
    rng = np.random.default_rng(1)
    codes = np.stack([rng.integers(0, size, 10**6) for size in PUBLISHED.level_sizes], axis=1)
    assert Trie.build(PUBLISHED, PUBLISHED.pack(codes)).bytes_per_sid <= 12


def test_wrong_keys_are_refused() -> None:
    layout = SidLayout((3, 3))
    with pytest.raises(ConfigError, match="increasing"):
        Trie.build(layout, np.array([4, 1], dtype=np.uint64), assume_sorted=True)
    with pytest.raises(ConfigError, match="increasing"):
        Trie.build(layout, np.array([1, 1], dtype=np.uint64), assume_sorted=True)
    for key in (3, 12, 2**40):
        with pytest.raises(ConfigError, match="code"):
            Trie.build(layout, np.array([key], dtype=np.uint64))
    with pytest.raises(ConfigError, match="mask"):
        Trie.build(layout, np.array([1], dtype=np.uint64)).filter(np.zeros(2, dtype=np.bool_))


def test_damage_is_named(tmp_path: Path) -> None:
    trie = Trie.build(PUBLISHED, PUBLISHED.pack(ADVERSARIAL["one child everywhere"]))
    trie.save(tmp_path)
    np.save(tmp_path / "codes_2.npy", trie.codes[2][:-1])
    with pytest.raises(ArtifactError, match="do not fit"):
        Trie.open(tmp_path)
    (tmp_path / "codes_2.npy").unlink()
    with pytest.raises(ArtifactError, match="codes_2"):
        Trie.open(tmp_path)
