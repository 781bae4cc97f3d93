"""Of the compiled expansion: candidates, and the best of them.

A candidate is one integer, the better the smaller: its score, mapped so that integers sort as
floats do, above (rank of its parent's SID among the rows, code). That is the order of the result,
ties included, and it needs no node numbers. NaN never becomes one.
"""

# To the type checker an element of an array may be an array, and intrinsics take one argument more.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false
from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_MIN_BUFFER = 32
LOWEST = np.float32(np.finfo(np.float32).min)
LOW_HALF = np.uint64(0xFFFFFFFF)
WORST = np.uint64(0xFFFFFFFFFFFFFFFF)


@njit(nogil=True, inline="always")
def worse(score: np.float32) -> np.uint64:
    """Unsigned integers, larger for worse scores; adding zero makes -0 and 0 one number."""
    raw = np.float32(score + np.float32(0.0)).view(np.uint32)
    if raw >> np.uint32(31):
        return np.uint64(raw)
    return np.uint64(~raw & np.uint32(0x7FFFFFFF))


@njit(nogil=True, inline="always")
def score_of(key: np.uint64) -> np.float32:
    raw = np.uint32(key >> np.uint64(32))
    if raw >> np.uint32(31):
        return np.uint32(raw).view(np.float32)
    return np.uint32(~raw & np.uint32(0x7FFFFFFF)).view(np.float32)


@njit(nogil=True, inline="always")
def score_of_bound(bound: np.uint64) -> np.float32:
    """The score below which nothing wins; -inf and NaN are always below."""
    return LOWEST if bound == WORST else score_of(bound)


@njit(nogil=True)
def bits_of_code(codebook: int) -> int:
    """Bits of a code."""
    bits = 0
    while (codebook - 1) >> bits:
        bits += 1
    return bits


@njit(nogil=True)
def keep_smallest(keys: NDArray[np.uint64], count: int, wanted: int) -> None:
    """Quickselect: the `wanted` smallest of keys[:count] come first, in any order."""
    low, high = 0, count - 1
    while low < high:
        pivot = keys[(low + high) >> 1]
        left, right = low, high
        while left <= right:
            while keys[left] < pivot:
                left += 1
            while keys[right] > pivot:
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


@njit(nogil=True)
def sort_by_byte(
    keys: NDArray[np.uint64], spare: NDArray[np.uint64], low_bit: int, bits: int
) -> None:
    """Stable sort of keys by their `bits` bits from `low_bit` on; `spare` has the same length."""
    counts = np.empty(256, dtype=np.int64)
    for shift in range(low_bit, low_bit + bits, 8):
        counts[:] = 0
        for key in keys:
            counts[(key >> np.uint64(shift)) & np.uint64(255)] += 1
        if counts[(keys[0] >> np.uint64(shift)) & np.uint64(255)] == len(keys):
            continue
        total = 0
        for byte in range(256):
            total, counts[byte] = total + counts[byte], total
        for key in keys:
            byte = np.int64((key >> np.uint64(shift)) & np.uint64(255))
            spare[counts[byte]] = key
            counts[byte] += 1
        keys[:] = spare


@njit(nogil=True)
def buffer_size(width: int) -> int:
    """Candidates that are kept before the best are picked out."""
    return width + max(width, _MIN_BUFFER)


@njit(nogil=True, inline="always")
def keep(
    buffer: NDArray[np.uint64], count: int, bound: np.uint64, width: int, key: np.uint64
) -> tuple[int, np.uint64]:
    """Adds a candidate below the bound; returns how many there are and the new bound."""
    buffer[count] = key
    count += 1
    if count == len(buffer):
        keep_smallest(buffer, count, width)
        return width, buffer[:width].max()
    if count == width and bound == WORST:
        return count, buffer[:width].max()
    return count, bound
