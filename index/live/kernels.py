"""Loops that NumPy would need several passes or calls for. They hold no GIL."""

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


# Signatures are given where the writer's thread is the first to call: compiling would stop it, and
# searches with it, for seconds.
@njit(
    [f"{kind}[::1]({kind}[::1], i8[::1], {kind}[::1])" for kind in ("i8", "u8")],
    cache=True,
    nogil=True,
)
def inserted(values: NDArray[Any], places: NDArray[np.int64], new: NDArray[Any]) -> NDArray[Any]:
    """`values` with `new` before the given places, which ascend; `np.insert`, faster."""
    result = np.empty(len(values) + len(new), dtype=values.dtype)
    first = 0
    for number in range(len(new)):
        place = places[number]
        result[first + number : place + number] = values[first:place]
        result[place + number] = new[number]
        first = place
    result[first + len(new) :] = values[first:]
    return result


@njit(
    [
        f"Tuple((i8[::1], {kind}[::1]))(i8[::1], {kind}[::1], i8[::1], {kind}[::1])"
        for kind in ("i8", "f8", "f4")
    ],
    cache=True,
    nogil=True,
)
def overwritten(
    rows: NDArray[np.int64],
    values: NDArray[Any],
    new: NDArray[np.int64],
    new_values: NDArray[Any],
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Ascending rows and their values with new ones, which win. All rows ascend, distinct."""
    result = np.empty(len(rows) + len(new), dtype=np.int64)
    result_values = np.empty(len(rows) + len(new), dtype=values.dtype)
    old, count = 0, 0
    for number in range(len(new)):
        row = new[number]
        while old < len(rows) and rows[old] < row:
            result[count] = rows[old]
            result_values[count] = values[old]
            old += 1
            count += 1
        if old < len(rows) and rows[old] == row:
            old += 1
        result[count] = row
        result_values[count] = new_values[number]
        count += 1
    rest = len(rows) - old
    result[count : count + rest] = rows[old:]
    result_values[count : count + rest] = values[old:]
    return result[: count + rest], result_values[: count + rest]
