import numpy as np
import pytest

from decoding.vllm.children import allowed_codes
from index.live.trie import LiveTrie


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("filtered", [False, True])
def test_children_are_those_of_the_sids(tiny_trie, live, filtered):
    random, trie = np.random.default_rng(0), tiny_trie
    if live:
        trie = LiveTrie.of(trie, trie.layout.pack(random.integers(0, 16, (80, 3))))
    kept = trie.filter(random.random(trie.n_leaves) < 0.3) if filtered else None
    sids = trie.layout.unpack(trie.keys)
    allowed = sids if kept is None else sids[kept.bits[-1]]
    nodes, prefixes = np.zeros(1, dtype=np.int64), [()]
    for level in range(3):
        bits = None if kept is None else kept.bits[level]
        rows, codes = allowed_codes(trie, level, nodes, bits)
        for row, prefix in enumerate(prefixes):
            below = allowed[(allowed[:, :level] == np.array(prefix, dtype=int)).all(axis=1)]
            assert sorted(codes[rows == row].tolist()) == sorted(set(below[:, level].tolist()))
        # On to any nodes of the level, base and added, in any order.
        nodes = random.permutation(trie.node_counts[level])[:70]
        prefixes = [prefix_of(trie, sids, level, int(node)) for node in nodes]


def prefix_of(trie, sids, level: int, node: int) -> tuple[int, ...]:
    """Codes of a node, by way of its leaves."""
    full = {}
    for leaf, sid in enumerate(sids.tolist()):
        full.setdefault(tuple(sid[: level + 1]), []).append(leaf)
    mask = np.zeros(trie.n_leaves, dtype=np.bool_)
    for prefix, leaves in full.items():
        mask[:] = False
        mask[leaves] = True
        if trie.filter(mask).bits[level][node]:
            return prefix
    raise AssertionError(f"node {node} of level {level} has no leaf")
