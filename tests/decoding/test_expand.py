import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.expand import Expansion, count_allowed, expand, expand_reference
from index.sid import SidLayout
from index.trie import Trie


def oracle(
    trie: Trie,
    level: int,
    nodes: np.ndarray,
    scores: np.ndarray,
    log_probabilities: np.ndarray,
    bits: np.ndarray | None,
    beam_width: int,
) -> list[tuple[float, int, int]]:
    """(-score, node, parent) in Python, node by node."""
    found: list[tuple[float, int, int]] = []
    for row, node in enumerate(nodes.tolist()):
        first, end = (0, trie.node_counts[0])
        if level:
            first, end = (int(part[0]) for part in trie.children(level - 1, np.array([node])))
        for child in range(first, end):
            if bits is None or bits[child]:
                total = scores[row] + log_probabilities[row, trie.codes[level][child]]
                found.append((-float(total), child, row))
    return sorted(found)[:beam_width]


def same(actual: Expansion, expected: list[tuple[float, int, int]]) -> bool:
    triples = zip(
        actual.scores.tolist(), actual.nodes.tolist(), actual.parents.tolist(), strict=True
    )
    return [(-score, node, row) for score, node, row in triples] == expected


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.sampled_from([1, 2, 3, 16, 300]), min_size=2, max_size=4),
    sids=st.integers(1, 400),
    beam_width=st.integers(1, 60),
    kept=st.sampled_from([None, 1.0, 0.3, 0.02, 0.0]),
    # A coarse grid of scores makes ties the rule.
    grid=st.sampled_from([None, 1, 2, 8]),
)
@settings(max_examples=150, deadline=None)
def test_all_implementations_agree(seed, sizes, sids, beam_width, kept, grid):
    random = np.random.default_rng(seed)
    layout = SidLayout(tuple(sizes))
    codes = np.stack([random.integers(0, size, sids) for size in sizes], axis=1)
    trie = Trie.build(layout, layout.pack(codes))
    chosen = None if kept is None else trie.filter(random.random(trie.n_leaves) < kept)
    nodes, scores = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    for level, size in enumerate(sizes):
        logits = -random.exponential(3.0, (len(nodes), size))
        logits = (logits if grid is None else np.ceil(logits * grid) / grid).astype(np.float32)
        bits = None if chosen is None else chosen.bits[level]
        arguments = (trie, level, nodes, scores, logits, bits, beam_width)
        expected = oracle(*arguments)
        fast, slow = expand(*arguments), expand_reference(*arguments)
        assert same(fast, expected)
        assert same(slow, expected)
        order = random.permutation(len(fast.nodes))  # Rows may come in any order.
        nodes, scores = fast.nodes[order], fast.scores[order]


def test_wide_levels_overflow_the_buffer_many_times():
    random = np.random.default_rng(0)
    layout = SidLayout((4096, 64))
    codes = np.stack([random.integers(0, 4096, 60_000), random.integers(0, 64, 60_000)], axis=1)
    trie = Trie.build(layout, layout.pack(codes))
    nodes, scores = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    # Ever better scores: each candidate displaces the worst.
    rising = np.linspace(-9, -1, 4096, dtype=np.float32)[None]
    for level, table in ((0, rising), (1, np.repeat(np.linspace(-3, 0, 64)[None], 512, 0))):
        arguments = (trie, level, nodes, scores, table.astype(np.float32), None, 512)
        fast, slow = expand(*arguments), expand_reference(*arguments)
        assert all(np.array_equal(one, two) for one, two in zip(fast, slow, strict=True))
        nodes, scores = fast.nodes, fast.scores


def test_negative_zero_ties_with_zero_and_minus_infinity_comes_last():
    layout = SidLayout((3,))
    trie = Trie.build(layout, np.arange(3, dtype=np.uint64))
    table = np.array([[-np.inf, -0.0, 0.0]], dtype=np.float32)
    root = np.zeros(1, dtype=np.int64)
    for start in (0.0, -0.0):
        scores = np.array([start], dtype=np.float32)
        found = expand(trie, 0, root, scores, table, None, 3)
        assert found.nodes.tolist() == [1, 2, 0]
        assert found.scores.tolist() == [0.0, 0.0, -np.inf]


def test_count_allowed():
    bits = np.array([True, False, True, True])
    counts = count_allowed(np.array([0, 1]), np.array([4, 2]), bits)
    assert counts.tolist() == [3, 0]
