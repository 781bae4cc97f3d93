"""Expansion: from a beam's prefixes to the best prefixes one level longer.

Only legal children are visited; nothing is padded to the largest branching factor and no vocabulary
is masked. The choice is exact: the `beam_width` best by score, ties by SID order, which is the
order of node numbers. Two implementations, proven equal: `expand_reference` (torch, any device)
and `expand` (Numba, CPU).

A candidate is one integer: its score, mapped so that integers sort as floats do, above the
complement of its node number. The largest integers are the winners, ties included.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from index.trie import Codes, Nodes, Trie

_MIN_BUFFER = 512
_NO_BITS = np.zeros(0, dtype=np.bool_)


class Expansion(NamedTuple):
    """The kept prefixes, best first.

    nodes int64 (m,) of the expanded level; parents int64 (m,), rows of the old beam; scores
    float32 (m,). m < beam width only when there are no more allowed children.
    """

    nodes: Nodes
    parents: Nodes
    scores: NDArray[np.float32]


def child_ranges(trie: Trie, level: int, nodes: Nodes) -> tuple[Nodes, Nodes]:
    """Children, as nodes of `level`, of nodes of the level above; level 0 hangs on the root."""
    if level:
        return trie.children(level - 1, nodes)
    return np.zeros(1, dtype=np.int64), np.array([trie.node_counts[0]], dtype=np.int64)


def expand(
    trie: Trie,
    level: int,
    nodes: Nodes,
    scores: NDArray[np.float32],
    log_probabilities: NDArray[np.float32],
    bits: NDArray[np.bool_] | None,
    beam_width: int,
) -> Expansion:
    """Expand one beam to `level`.

    `nodes` int64 (rows,): distinct nodes of level - 1 (for level 0 one row, the root, any number).
    `scores` float32 (rows,). `log_probabilities` float32 (rows, K_level), ≤ 0. `bits`: the filter's
    bool per node of `level`, None for all. Fastest when rows come best first.
    """
    first, end = child_ranges(trie, level, nodes)
    allowed = _NO_BITS if bits is None else bits
    return Expansion(
        *_expand(first, end, scores, log_probabilities, trie.codes[level], allowed, beam_width)
    )


def expand_reference(
    trie: Trie,
    level: int,
    nodes: Nodes,
    scores: NDArray[np.float32],
    log_probabilities: NDArray[np.float32],
    bits: NDArray[np.bool_] | None,
    beam_width: int,
) -> Expansion:
    """The same by a ragged gather of all children and two stable sorts."""
    first, end = (torch.from_numpy(part) for part in child_ranges(trie, level, nodes))
    counts = end - first
    parent = torch.repeat_interleave(torch.arange(len(counts)), counts)
    begin = torch.cumsum(counts, 0) - counts
    child = first[parent] + torch.arange(len(parent)) - begin[parent]
    if bits is not None:
        kept = torch.from_numpy(bits[child.numpy()])
        parent, child = parent[kept], child[kept]
    code = torch.from_numpy(trie.codes[level][child.numpy()].astype(np.int64))
    candidate = torch.from_numpy(scores)[parent]
    candidate = candidate + torch.from_numpy(log_probabilities)[parent, code] + 0.0
    by_node = torch.argsort(child)
    order = by_node[torch.argsort(-candidate[by_node], stable=True)][:beam_width]
    return Expansion(child[order].numpy(), parent[order].numpy(), candidate[order].numpy())


@njit(cache=True, nogil=True)
def count_allowed(first: Nodes, end: Nodes, bits: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Allowed children of each row, int32 (rows,)."""
    counts = np.empty(len(first), dtype=np.int32)
    for row in range(len(first)):
        count = 0
        for child in range(first[row], end[row]):
            count += bits[child]
        counts[row] = count
    return counts


@njit(cache=True, nogil=True, inline="always")
def _sortable(score: np.float32) -> np.uint64:
    """Unsigned integers in the order of floats; adding zero makes -0 and 0 one number."""
    raw = np.float32(score + np.float32(0.0)).view(np.uint32)
    if raw >> np.uint32(31):
        return np.uint64(~raw & np.uint32(0xFFFFFFFF))
    return np.uint64(raw | np.uint32(0x80000000))


@njit(cache=True, nogil=True, inline="always")
def _unsortable(key: np.uint64) -> np.float32:
    raw = np.uint32(key)
    if raw >> np.uint32(31):
        return np.uint32(raw & np.uint32(0x7FFFFFFF)).view(np.float32)
    return np.uint32(~raw & np.uint32(0xFFFFFFFF)).view(np.float32)


@njit(cache=True, nogil=True)
def _keep_largest(keys: NDArray[np.uint64], count: int, wanted: int) -> None:
    """Quickselect: the `wanted` largest of keys[:count] come first, in any order."""
    low, high = 0, count - 1
    while low < high:
        pivot = keys[(low + high) >> 1]
        left, right = low, high
        while left <= right:
            while keys[left] > pivot:
                left += 1
            while keys[right] < pivot:
                right -= 1
            if left <= right:
                keys[left], keys[right] = keys[right], keys[left]
                left += 1
                right -= 1
        if wanted - 1 <= right:
            high = right
        elif wanted - 1 >= left:
            low = left
        else:
            return


@njit(cache=True, nogil=True)
def _expand(
    first: Nodes,
    end: Nodes,
    scores: NDArray[np.float32],
    log_probabilities: NDArray[np.float32],
    codes: Codes,
    bits: NDArray[np.bool_],
    beam_width: int,
) -> tuple[Nodes, Nodes, NDArray[np.float32]]:
    filtered = len(bits) > 0
    low_half = np.uint64(0xFFFFFFFF)
    keys = np.empty(max(2 * beam_width, _MIN_BUFFER), dtype=np.uint64)
    count = 0
    # Keys up to the bound cannot win: `beam_width` better ones were seen.
    bound = np.uint64(0)
    for row in range(len(first)):
        score = scores[row]
        # Log-probabilities are not positive, so no child is better than its parent.
        if (_sortable(score) << np.uint64(32)) | low_half <= bound:
            continue
        for child in range(first[row], end[row]):
            if filtered and not bits[child]:
                continue
            total = score + log_probabilities[row, codes[child]]
            key = (_sortable(total) << np.uint64(32)) | (low_half - np.uint64(child))
            if key <= bound:
                continue
            keys[count] = key
            count += 1
            if count == len(keys):
                _keep_largest(keys, count, beam_width)
                count = beam_width
                bound = keys[:count].min()
    if count > beam_width:
        _keep_largest(keys, count, beam_width)
        count = beam_width
    chosen = np.sort(keys[:count])[::-1]
    nodes = np.empty(count, dtype=np.int64)
    totals = np.empty(count, dtype=np.float32)
    parents = np.empty(count, dtype=np.int64)
    # Children of distinct parents are disjoint runs: a node tells its parent by binary search.
    order = np.argsort(first)
    starts = first[order]
    for rank in range(count):
        node = np.int64(low_half - (chosen[rank] & low_half))
        nodes[rank] = node
        totals[rank] = _unsortable(chosen[rank] >> np.uint64(32))
        parents[rank] = order[np.searchsorted(starts, node, side="right") - 1]
    return nodes, parents, totals
