"""Both implementations against each other on tries and scores chosen to be difficult."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.expand import choose, choose_reference, expand, expand_reference
from index.errors import ConfigError
from index.live.trie import AnyTrie, LiveTrie
from index.sid import SidLayout
from index.trie import Trie

ROOT = np.zeros(1, dtype=np.int64)
START = np.zeros(1, dtype=np.float32)
SHAPES = ("uniform", "chains", "one node of 4096", "zipf", "single", "one prefix")


def shaped(shape: str, random: np.random.Generator) -> Trie:
    """A small trie of the given shape."""
    sids = int(random.integers(1, 400))
    if shape == "one node of 4096":
        layout = SidLayout((2, 4096, 3))
        every = np.arange(4096)
        codes = np.stack([np.zeros(4096, dtype=int), every, every % 3], axis=1)
        codes = np.concatenate([codes, [[1, 7, 2]]])
        return Trie.build(layout, layout.pack(codes))
    sizes = tuple(random.choice([1, 2, 3, 16, 64, 300], size=random.integers(2, 5)).tolist())
    layout = SidLayout(sizes)
    codes = np.stack([random.integers(0, size, sids) for size in sizes], axis=1)
    if shape == "chains":
        # A prefix decides all that follows: one child everywhere but at the root.
        for level in range(1, len(sizes)):
            codes[:, level] = codes[:, 0] % sizes[level]
    elif shape == "zipf":
        for level, size in enumerate(sizes):
            codes[:, level] = np.minimum(random.zipf(1.3, sids) - 1, size - 1)
    elif shape == "single":
        codes = codes[:1]
    elif shape == "one prefix":
        codes[:, :-1] = codes[0, :-1]
    return Trie.build(layout, layout.pack(codes))


def with_added(trie: Trie, random: np.random.Generator, count: int) -> AnyTrie:
    """Some SIDs more, near those that are there and anywhere."""
    layout = trie.layout
    codes = trie.codes_of_leaves(random.integers(0, trie.n_leaves, count))
    for row in codes:
        first = random.integers(0, layout.levels)
        sizes = layout.level_sizes[first:]
        row[first:] = [random.integers(0, size) for size in sizes]
    return LiveTrie.of(trie, layout.pack(codes))


def values(random: np.random.Generator, shape: tuple[int, int], grid: int | None) -> np.ndarray:
    """Negative numbers; on a coarse grid ties are the rule, on grid 0 all are equal."""
    found = -random.exponential(3.0, shape)
    if grid is not None:
        found = np.ceil(found * grid) / max(grid, 1)
    return found.astype(np.float32)


def kill_some(array: np.ndarray, random: np.random.Generator, share: float) -> np.ndarray:
    array = array.copy()
    array[random.random(array.shape) < share] = -np.inf
    return array


def same(one, two) -> bool:
    return all(np.array_equal(left, right) for left, right in zip(one, two, strict=True))


CASES = {
    "seed": st.integers(0, 2**32 - 1),
    "shape": st.sampled_from(SHAPES),
    "added": st.sampled_from([0, 0, 1, 30]),
    "beam_width": st.integers(1, 60) | st.just(700),
    "kept": st.sampled_from([None, 1.0, 0.05, 0.01, 0.002, 0.0]),
}


@given(
    **CASES, grid=st.sampled_from([None, 0, 1, 2, 8]), dead=st.sampled_from([0.0, 0.0, 0.3, 1.0])
)
@settings(max_examples=250, deadline=None)
def test_the_choice_is_the_same_bit_for_bit(seed, shape, added, beam_width, kept, grid, dead):
    random = np.random.default_rng(seed)
    trie = shaped(shape, random)
    if added:
        trie = with_added(trie, random, added)
    chosen = None if kept is None else trie.filter(random.random(trie.n_leaves) < kept)
    nodes, scores, order = ROOT, START, np.zeros(1, dtype=np.int64)
    prefixes = np.zeros((1, 0), dtype=np.int64)
    for level, size in enumerate(trie.layout.level_sizes):
        table = kill_some(values(random, (len(nodes), size), grid), random, dead / 10)
        bits = None if chosen is None else chosen.bits[level]
        arguments = (trie, level, nodes, scores, table, bits, beam_width, order)
        fast, slow = choose(*arguments), choose_reference(*arguments)
        assert same(fast, slow)
        assert np.array_equal(fast.nodes, np.array(list(dict.fromkeys(fast.nodes.tolist()))))
        prefixes = np.concatenate([prefixes[fast.parents], fast.codes[:, None]], axis=1)
        # Equal scores stand in SID order.
        pairs = [(-score, *sid) for score, sid in zip(fast.scores, prefixes.tolist(), strict=True)]
        assert pairs == sorted(pairs)
        # Rows may come in any order, and be dead.
        mixed = random.permutation(len(fast.nodes))
        nodes, prefixes = fast.nodes[mixed], prefixes[mixed]
        scores = kill_some(fast.scores[mixed], random, dead / 2)
        order = np.empty(len(nodes), dtype=np.int64)
        order[np.lexsort(prefixes.T[::-1])] = np.arange(len(nodes))


@given(**CASES, with_prior=st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_softmax_is_torchs(seed, shape, added, beam_width, kept, with_prior):
    random = np.random.default_rng(seed)
    trie = shaped(shape, random)
    if added:
        trie = with_added(trie, random, added)
    chosen = None if kept is None else trie.filter(random.random(trie.n_leaves) < kept)
    nodes, scores, order = ROOT, START, np.zeros(1, dtype=np.int64)
    for level, size in enumerate(trie.layout.level_sizes):
        logits = random.normal(0, 4, (len(nodes), size)).astype(np.float32)
        prior = random.normal(0, 4, size).astype(np.float32) if with_prior else None
        bits = None if chosen is None else chosen.bits[level]
        arguments = (trie, level, nodes, scores, logits, prior, bits, beam_width, order)
        fast, slow = expand(*arguments), expand_reference(*arguments)
        # Apart from exchanges of scores that are equal up to rounding.
        assert len(fast.nodes) == len(slow.nodes)
        assert np.allclose(fast.scores, slow.scores, rtol=1e-6, atol=4e-6)
        table = torch.log_softmax(torch.from_numpy(logits if prior is None else logits + prior), 1)
        expected = table.numpy()[fast.parents, fast.codes]
        assert np.allclose(fast.level_scores, expected, rtol=1e-6, atol=2e-6)
        assert np.array_equal(fast.scores, scores[fast.parents] + fast.level_scores)
        ranks = np.empty(len(fast.nodes), dtype=np.int64)
        ranks[np.lexsort((fast.codes, order[fast.parents]))] = np.arange(len(fast.nodes))
        nodes, scores, order = fast.nodes, fast.scores, ranks


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 100, 256, 1000, 4096])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_the_softmax_is_accurate(size, scale):
    random = np.random.default_rng(size)
    layout = SidLayout((size,))
    trie = Trie.build(layout, np.arange(size, dtype=np.uint64))
    for _ in range(20):
        logits = (random.standard_normal((1, size)) * scale).astype(np.float32)
        exact = torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()[0]
        found = expand(trie, 0, ROOT, START, logits, None, None, size)
        error = np.abs(found.level_scores - exact[found.codes])
        torchs = torch.log_softmax(torch.from_numpy(logits), -1).numpy()[0][found.codes]
        two_places = 2 * float(np.spacing(np.abs(exact).max().astype(np.float32)))
        assert error.max() <= np.abs(torchs - exact[found.codes]).max() + two_places
        assert (found.level_scores <= 0).all()


def test_wide_levels_overflow_the_buffer_many_times():
    random = np.random.default_rng(0)
    layout = SidLayout((4096, 64))
    codes = np.stack([random.integers(0, 4096, 60_000), random.integers(0, 64, 60_000)], axis=1)
    trie = Trie.build(layout, layout.pack(codes))
    nodes, scores = ROOT, START
    # Ever better scores: each candidate displaces the worst.
    rising = np.linspace(-9, -1, 4096, dtype=np.float32)[None]
    for level, table in ((0, rising), (1, np.repeat(np.linspace(-3, 0, 64)[None], 512, 0))):
        arguments = (trie, level, nodes, scores, table.astype(np.float32), None, 512)
        fast = choose(*arguments)
        assert same(fast, choose_reference(*arguments))
        nodes, scores = fast.nodes, fast.scores


def test_many_children_under_a_filter():
    random = np.random.default_rng(1)
    layout = SidLayout((32, 1024))
    trie = Trie.build(layout, random.choice(1 << 15, 20_000, replace=False).astype(np.uint64))
    for kept in (1.0, 0.05, 0.002):
        bits = trie.filter(random.random(trie.n_leaves) < kept).bits[1]
        scores = -np.sort(random.exponential(2, 32)).astype(np.float32)
        table = torch.log_softmax(torch.from_numpy(values(random, (32, 1024), None)), -1).numpy()
        for width in (1, 20, 300):
            arguments = (trie, 1, np.arange(32), scores, table, bits, width)
            assert same(choose(*arguments), choose_reference(*arguments))


@given(
    seed=st.integers(0, 2**32 - 1),
    sids=st.sampled_from([1, 63, 64, 65, 4000]),
    runs=st.lists(st.tuples(st.integers(0, 4000), st.sampled_from([1, 7, 64, 200])), max_size=4),
    added=st.sampled_from([0, 0, 40]),
    width=st.sampled_from([1, 40, 512]),
)
@settings(max_examples=60, deadline=None)
def test_filters_with_long_gaps(seed, sids, runs, added, width):
    random = np.random.default_rng(seed)
    layout = SidLayout((5, 900, 3))
    codes = np.stack([random.integers(0, size, sids) for size in layout.level_sizes], axis=1)
    trie: AnyTrie = Trie.build(layout, layout.pack(codes))
    if added:
        trie = with_added(trie, random, added)
    mask = np.zeros(trie.n_leaves, dtype=np.bool_)
    for first, length in runs:
        mask[first : first + length] = True
    chosen = trie.filter(mask)
    nodes, scores, order = ROOT, START, np.zeros(1, dtype=np.int64)
    for level, size in enumerate(layout.level_sizes):
        table = values(random, (len(nodes), size), 2)
        arguments = (trie, level, nodes, scores, table, chosen.bits[level], width, order)
        fast = choose(*arguments)
        assert same(fast, choose_reference(*arguments))
        ranks = np.empty(len(fast.nodes), dtype=np.int64)
        ranks[np.lexsort((fast.codes, order[fast.parents]))] = np.arange(len(fast.nodes))
        nodes, scores, order = fast.nodes, fast.scores, ranks


def test_negative_zero_ties_with_zero_and_what_is_impossible_is_not_kept():
    layout = SidLayout((4,))
    trie = Trie.build(layout, np.arange(4, dtype=np.uint64))
    table = np.array([[-np.inf, -0.0, 0.0, np.nan]], dtype=np.float32)
    for start in (0.0, -0.0):
        scores = np.array([start], dtype=np.float32)
        found = choose(trie, 0, ROOT, scores, table, None, 4)
        assert found.nodes.tolist() == [1, 2]
        assert found.scores.tolist() == [0.0, 0.0]
        assert found.branching.tolist() == [4, 4]


def test_not_a_number_kills_its_row_only():
    layout = SidLayout((2, 70))
    trie = Trie.build(layout, np.arange(256, dtype=np.uint64)[np.arange(256) % 128 < 70])
    scores = np.array([-1.0, -2.0], dtype=np.float32)
    # NaN of both signs, and one whose lowest bits are set.
    odd = np.array([0xFF8001FF], dtype=np.uint32).view(np.float32)[0]
    for poison in (np.nan, -np.nan, np.copysign(np.nan, -1), odd, np.inf):
        for place in (slice(None), 0, 3, 69):
            logits = np.zeros((2, 70), dtype=np.float32)
            logits[0, place] = poison
            found = expand(trie, 1, np.arange(2), scores, logits, None, None, 5)
            assert found.parents.tolist() == [1] * 5
    nothing = np.full((2, 70), -np.inf, dtype=np.float32)
    assert not len(expand(trie, 1, np.arange(2), scores, nothing, None, None, 5).nodes)


def test_no_rows():
    layout = SidLayout((4, 4))
    trie = Trie.build(layout, np.arange(16, dtype=np.uint64))
    none, dead = np.zeros(0, dtype=np.int64), np.full(1, -np.inf, dtype=np.float32)
    logits = np.zeros((1, 4), dtype=np.float32)
    for run in (expand, expand_reference):
        empty = run(trie, 1, none, none.astype(np.float32), logits[:0], None, None, 3)
        assert [len(part) for part in empty] == [0] * 6
        assert not len(run(trie, 0, ROOT, dead, logits, None, None, 3).nodes)


def test_a_beam_too_wide_to_be_ranked_is_refused():
    layout = SidLayout((1 << 17 >> 1, 1 << 16))
    trie = Trie.build(layout, np.arange(4, dtype=np.uint64))
    nodes = np.zeros((1 << 16) + 1, dtype=np.int64)
    logits = np.broadcast_to(np.float32(0), (len(nodes), 1 << 16))
    with pytest.raises(ConfigError, match="65536 is the widest"):
        expand(trie, 1, nodes, nodes.astype(np.float32), logits, None, None, 3)
