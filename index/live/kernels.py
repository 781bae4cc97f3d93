"""Loops over leaves and nodes that NumPy would need several passes for. They hold no GIL."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def mark_leaves(
    item_mask: NDArray[np.bool_], leaf_of_row: NDArray[Any], leaf_mask: NDArray[np.bool_]
) -> None:
    """Set the leaf of every allowed item; `leaf_mask` bool (N,) is written."""
    for row in range(len(item_mask)):
        if item_mask[row]:
            leaf_mask[leaf_of_row[row]] = True


@njit(cache=True, nogil=True)
def any_child(
    first: NDArray[np.int64], end: NDArray[np.int64], bits: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether any bit of each run [first, end) is set, bool (runs,)."""
    found = np.zeros(len(first), dtype=np.bool_)
    for run in range(len(first)):
        for child in range(first[run], end[run]):
            if bits[child]:
                found[run] = True
                break
    return found


@njit(cache=True, nogil=True)
def child_with_code(
    base: NDArray[np.uint32],
    delta: NDArray[np.uint16],
    shift: int,
    codes: NDArray[Any],
    parents: NDArray[np.int64],
    wanted: NDArray[np.int32],
) -> NDArray[np.int64]:
    """The child of each parent that has the wanted code, int64; -1 where there is none.

    `base`, `delta`, `shift`: compact starts of the parents' level; `codes` of the children's.
    """
    found = np.full(len(parents), -1, dtype=np.int64)
    for row in range(len(parents)):
        node = parents[row]
        low = np.int64(base[node >> shift]) + delta[node]
        end = np.int64(base[(node + 1) >> shift]) + delta[node + 1]
        high = end
        while low < high:
            middle = (low + high) >> 1
            if codes[middle] < wanted[row]:
                low = middle + 1
            else:
                high = middle
        if low < end and codes[low] == wanted[row]:
            found[row] = low
    return found
