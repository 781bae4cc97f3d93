"""Which codes continue prefixes: in the trie, among what was added to it, under a filter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoding.expand import base_of
from index.live.trie import AnyTrie, LiveTrie
from index.trie import Nodes


def allowed_codes(
    trie: AnyTrie, level: int, nodes: Nodes, bits: NDArray[np.bool_] | None
) -> tuple[Nodes, NDArray[np.integer[Any]]]:
    """Rows and codes of all allowed children of `nodes`, both (children,), in no order of rows.
    `nodes` int64 (rows,): of `level - 1`; for level 0 one row, any number. `bits`: the filter's
    bool per node of `level`."""
    base = base_of(trie)
    if level:
        first, end = trie.children(level - 1, nodes)
    else:
        first, end = np.zeros(1, dtype=np.int64), np.array([base.node_counts[0]], dtype=np.int64)
    row, child = _ragged(first, end)
    if isinstance(trie, LiveTrie) and len(trie.added[level].codes):
        above = nodes if level else np.zeros(1, dtype=np.int64)
        more_rows, more = _ragged(*trie.added_children(level - 1, above))
        row, child = np.concatenate([row, more_rows]), np.concatenate([child, more])
    if bits is not None:
        kept = bits[child]
        row, child = row[kept], child[kept]
    live = isinstance(trie, LiveTrie)
    return row, trie.codes_at(level, child) if live else trie.codes[level][child]


def _ragged(first: Nodes, end: Nodes) -> tuple[Nodes, Nodes]:
    """Rows and members of the runs [first, end)."""
    counts = end - first
    row = np.repeat(np.arange(len(first)), counts)
    return row, np.arange(len(row)) + np.repeat(end - np.cumsum(counts), counts)
