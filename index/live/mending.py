"""The compiled loop that brings what a filter lets through from one view to a later one.

Rows first, then their leaves, then the leaves' ancestors as far as something changes. What was
added to the trie comes last: its bits are made anew, and base nodes that only added leaves reach
are raised. `index.live.sheets` says what lies where.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from index.starts import last_at_most


def _ro(kind: Any) -> Any:
    return types.Array(kind, 1, "C", readonly=True)


_B, _I, _F = types.boolean[::1], types.int64[::1], types.float64[::1]
_U2, _U4, _RO4 = types.uint16[::1], types.uint32[::1], _ro(types.uint32)


@njit(inline="always")
def _value(newest: NDArray[Any], changed: NDArray[np.int64], before: NDArray[Any], row: int) -> Any:
    """A column's value of one row."""
    low, high = 0, len(changed)
    while low < high:
        middle = (low + high) >> 1
        if changed[middle] < row:
            low = middle + 1
        else:
            high = middle
    if low < len(changed) and changed[low] == row:
        return before[low]
    return newest[row]


@njit(inline="always")
def _parent(
    level: int,
    node: Any,
    blocks: NDArray[np.uint32],
    block_at: NDArray[np.int64],
    deltas: NDArray[np.uint16],
    delta_at: NDArray[np.int64],
    shifts: NDArray[np.int64],
) -> int:
    """The node of `level` whose children have `node` among them."""
    block = last_at_most(blocks, block_at[level], block_at[level + 1], node)
    first = delta_at[level]
    begin = first + ((block - block_at[level]) << shifts[level])
    end = min(begin + (1 << shifts[level]), delta_at[level + 1])
    return last_at_most(deltas, begin, end, node - np.int64(blocks[block])) - first


@njit(
    types.Tuple((types.int64, types.int64, types.int64, _I))(
        *(_B, _I, _I, _I, _I, _I, _I, _B, types.boolean),
        *(_ro(types.boolean), _I, _B, types.boolean),
        *(_ro(types.float64), _I, _F, types.float64, types.float64),
        *(_ro(types.int64), _I, _I, types.boolean),
        *(_I, _U4, _I, _U2, _I, _I, _RO4, _RO4, _RO4),
        *(_I, _I, _I, _I, _I, _I, types.int64[:, ::1]),
    ),
    cache=True,
    nogil=True,
)
def mend(
    memory: NDArray[np.bool_],
    at: NDArray[np.int64],
    used: NDArray[np.int64],
    lengths: NDArray[np.int64],
    raised: NDArray[np.int64],
    known: NDArray[np.int64],
    rows: NDArray[np.int64],
    static: NDArray[np.bool_],
    has_static: bool,
    alive: NDArray[np.bool_],
    alive_changed: NDArray[np.int64],
    alive_before: NDArray[np.bool_],
    has_alive: bool,
    price: NDArray[np.float64],
    price_changed: NDArray[np.int64],
    price_before: NDArray[np.float64],
    price_low: float,
    price_high: float,
    stock: NDArray[np.int64],
    stock_changed: NDArray[np.int64],
    stock_before: NDArray[np.int64],
    in_stock: bool,
    counts: NDArray[np.int64],
    blocks: NDArray[np.uint32],
    block_at: NDArray[np.int64],
    deltas: NDArray[np.uint16],
    delta_at: NDArray[np.int64],
    shifts: NDArray[np.int64],
    start: NDArray[np.uint32],
    base_rows: NDArray[np.uint32],
    leaf_of_row: NDArray[np.uint32],
    sids: NDArray[np.int64],
    sorted_sids: NDArray[np.int64],
    sorted_rows: NDArray[np.int64],
    leaf_of_id: NDArray[np.int64],
    parents: NDArray[np.int64],
    starts: NDArray[np.int64],
    table: NDArray[np.int64],
) -> tuple[int, int, int, NDArray[np.int64]]:
    """`Sheet.mend`; returns items, leaves of the base, all leaves, and what was raised."""
    levels, n_base_rows = len(counts), len(leaf_of_row)
    n_items, n_leaves = known[0], known[1]
    leaf_at, n_base_leaves = at[levels], counts[levels - 1]
    mask_at = at[0]
    # Back to the state without added leaves.
    for place in raised:
        memory[place] = False
    for level in range(levels):
        first = at[level + 1] + counts[level]
        memory[first : at[level + 1] + max(used[level + 1], lengths[level + 1])] = False
    memory[mask_at + used[0] : mask_at + lengths[0]] = False
    # Rows.
    leaves = np.empty(len(rows), dtype=np.int64)
    n_changed = 0
    for row in rows:
        holds = not has_static or static[row]
        if holds and has_alive:
            holds = _value(alive, alive_changed, alive_before, row)
        if holds and (price_low == price_low or price_high == price_high):
            value = _value(price, price_changed, price_before, row)
            holds = value == value and not value < price_low and not value > price_high
        if holds and in_stock:
            holds = _value(stock, stock_changed, stock_before, row) != 0
        if memory[mask_at + row] == holds:
            continue
        memory[mask_at + row] = holds
        n_items += 1 if holds else -1
        leaf = np.int64(leaf_of_row[row]) if row < n_base_rows else sids[row - n_base_rows]
        if leaf < n_base_leaves:
            leaves[n_changed] = leaf
            n_changed += 1
    # Leaves of the base, and what is above them.
    for number in range(n_changed):
        leaf = leaves[number]
        bit = False
        for place in range(start[leaf], start[leaf + 1]):
            if memory[mask_at + base_rows[place]]:
                bit = True
                break
        if not bit and len(sorted_sids):
            low, high = 0, len(sorted_sids)
            while low < high:
                middle = (low + high) >> 1
                if sorted_sids[middle] < leaf:
                    low = middle + 1
                else:
                    high = middle
            while low < len(sorted_sids) and sorted_sids[low] == leaf:
                if memory[mask_at + sorted_rows[low]]:
                    bit = True
                    break
                low += 1
        if memory[leaf_at + leaf] == bit:
            continue
        memory[leaf_at + leaf] = bit
        n_leaves += 1 if bit else -1
        node = leaf
        for level in range(levels - 2, -1, -1):
            node = _parent(level, node, blocks, block_at, deltas, delta_at, shifts)
            if memory[at[level + 1] + node] and bit:
                break
            if not bit:
                shift, first = shifts[level], delta_at[level] + node
                begin = np.int64(blocks[block_at[level] + (node >> shift)]) + deltas[first]
                end = np.int64(blocks[block_at[level] + ((node + 1) >> shift)]) + deltas[first + 1]
                some = False
                for child in range(begin, end):
                    if memory[at[level + 2] + child]:
                        some = True
                        break
                if some:
                    break
            memory[at[level + 1] + node] = bit
    # Added leaves, and what is above them.
    n_all = n_leaves
    for item in range(len(sids)):
        if sids[item] >= n_base_leaves and memory[mask_at + n_base_rows + item]:
            place = leaf_at + leaf_of_id[sids[item] - n_base_leaves]
            n_all += not memory[place]
            memory[place] = True
    room = 0
    for level in range(1, levels):
        room += table[level, 1] * level
    newly = np.empty(room, dtype=np.int64)
    n_raised = 0
    for level in range(levels - 1, 0, -1):
        first_node = at[level + 1] + counts[level]
        for number in range(table[level, 1]):
            begin = starts[table[level, 2] + number]
            end = starts[table[level, 2] + number + 1]
            some = False
            for child in range(first_node + begin, first_node + end):
                if memory[child]:
                    some = True
                    break
            if not some:
                continue
            node = parents[table[level, 0] + number]
            above = level - 1
            if node >= counts[above]:
                memory[at[level] + node] = True
                continue
            while not memory[at[above + 1] + node]:
                memory[at[above + 1] + node] = True
                newly[n_raised] = at[above + 1] + node
                n_raised += 1
                if above == 0:
                    break
                above -= 1
                node = _parent(above, node, blocks, block_at, deltas, delta_at, shifts)
    return n_items, n_leaves, n_all, newly[:n_raised].copy()
