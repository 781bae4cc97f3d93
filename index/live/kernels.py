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
