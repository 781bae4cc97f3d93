"""Of the compiled expansion: the children of a beam's rows, in the trie, among what was added to it
and under a filter."""

# To the type checker an element of an array may be an array, and intrinsics take one argument more.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from decoding.softmax import BLOCK, Floats
from index.trie import Codes, Nodes

# Columns of the table of beams, one int64 row per beam.
FIRST_ROW, ROWS, FIRST_LOGITS, PRIOR, WIDTH, FIRST_SLOT, BITS = range(7)
ADDED, ADDED_PARENTS, ADDED_STARTS, ADDED_CODES = range(7, 11)
NO_PRIOR = -1

# Bits of fewer nodes are read one by one: they seldom lie across two lines of memory.
_FEW = 8
_INT32 = ir.IntType(32)


class LevelArrays(NamedTuple):
    """The base trie at one level: the codes of its nodes, and the compact starts of the level above
    (`shift` < 0 and empty arrays at level 0, whose nodes are the root's children)."""

    codes: Codes
    start_base: NDArray[np.uint32]
    start_delta: NDArray[np.uint16]
    shift: int


class Rows(NamedTuple):
    """All rows of the beams: nodes int64, scores float32, and the ranks int64 of their SIDs within
    their beam, each (rows,); and room for what is found out about them, (rows,) each."""

    nodes: Nodes
    scores: Floats
    ranks: Nodes
    first: Nodes
    end: Nodes
    maximum: Floats
    log_sum: Floats


@intrinsic
def pointer(_typing: Any, address: Any) -> Any:
    """An address as a pointer."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate


@intrinsic
def trailing_zeros(_typing: Any, word: Any) -> Any:
    """Position of the lowest set bit of a word that is not zero."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@intrinsic
def set_bits(_typing: Any, word: Any) -> Any:
    """How many bits of a word are set."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def _block_set(_typing: Any, address: Any) -> Any:
    """One bit for each of the bytes of the block at an address: whether it is not zero."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        block = ir.VectorType(ir.IntType(8), BLOCK)
        found = builder.load(builder.inttoptr(arguments[0], block.as_pointer()), align=1)
        return builder.bitcast(
            builder.icmp_unsigned("!=", found, ir.Constant(block, None)), ir.IntType(BLOCK)
        )

    return types.uint64(address), generate


@intrinsic
def _prefetch(_typing: Any, address: Any) -> Any:
    """Asks for the memory at an address, which may be any, without waiting for it."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _INT32, _INT32, _INT32])
        name = "llvm.prefetch.p0"
        prefetch = cgutils.get_or_insert_function(builder.module, kind, name)
        builder.call(prefetch, [pointer, _INT32(0), _INT32(3), _INT32(1)])
        return context.get_dummy_value()

    return types.void(address), generate


@njit(nogil=True, inline="always")
def uncounted(array: Any) -> Any:
    """The same array, not counting references: counting is atomic, and would take most of the time
    of a short row. Only for arrays that the caller keeps."""
    return carray(pointer(array.ctypes.data), array.shape, dtype=array.dtype)


@njit(nogil=True)
def find_code(codes: Codes, first: int, end: int, codebook: int, code: int) -> int:
    """Position of a code in the ascending run [first, end) of codes, -1 where it is not."""
    # Codes are distinct, so a dense run leaves few places.
    low = first + max(0, code - (codebook - (end - first)))
    count = min(end, first + code + 1) - low
    if count <= 0:
        return -1
    while count > 1:
        half = count >> 1
        low = low + half if codes[low + half] <= code else low
        count -= half
    return low if codes[low] == code else -1


@njit(nogil=True)
def added_run(table: Nodes, node: int) -> tuple[int, int]:
    """The run of added children of a node, as positions in the level's added codes."""
    count = table[ADDED]
    parents = carray(pointer(table[ADDED_PARENTS]), (count,), dtype=np.int64)
    place = np.searchsorted(parents, node)
    if place == count or parents[place] != node:
        return 0, 0
    starts = carray(pointer(table[ADDED_STARTS]), (count + 1,), dtype=np.int64)
    return starts[place], starts[place + 1]


@njit(nogil=True)
def allowed_of(table: Nodes, n_base: int) -> NDArray[np.uint8]:
    """The filter's bits over the nodes of the level, of which `n_base` are the base's; of no length
    without a filter."""
    if not table[BITS]:
        return np.empty(0, dtype=np.uint8)
    count = n_base
    if table[ADDED]:
        starts = carray(pointer(table[ADDED_STARTS]), (table[ADDED] + 1,), dtype=np.int64)
        count += starts[table[ADDED]]
    return carray(pointer(table[BITS]), (count,), dtype=np.uint8)


@njit(nogil=True, inline="always")
def block_allowed(allowed: NDArray[np.uint8], first: int, end: int) -> np.uint64:
    """One bit for each of the nodes [first, end), at most BLOCK: whether it is allowed."""
    count = end - first
    word = np.uint64(0)
    if count < _FEW or first + BLOCK > len(allowed):
        for place in range(count):
            word |= np.uint64(allowed[np.uint64(first + place)]) << np.uint64(place)
        return word
    word = _block_set(allowed.ctypes.data + first)
    return word & (~np.uint64(0) >> np.uint64(BLOCK - count))


@njit(nogil=True)
def count_allowed(allowed: NDArray[np.uint8], first: int, end: int) -> int:
    """How many of the nodes [first, end) are allowed; all without a filter."""
    if not len(allowed):
        return end - first
    count = np.uint64(0)
    for block in range(first, end, BLOCK):
        count += set_bits(block_allowed(allowed, block, min(end, block + BLOCK)))
    return np.int64(count)


@njit(nogil=True)
def find_children(table: Nodes, level: LevelArrays, rows: Rows) -> None:
    """Base children of each row. One loop for all, so that waits for memory overlap; for the same
    reason the first children's codes and bits are asked for."""
    n_above = len(level.start_delta) - 1
    base, delta, shift = uncounted(level.start_base), uncounted(level.start_delta), level.shift
    nodes, firsts, ends = uncounted(rows.nodes), uncounted(rows.first), uncounted(rows.end)
    codes, code_size = level.codes.ctypes.data, level.codes.itemsize
    for row in range(table[FIRST_ROW], table[FIRST_ROW] + table[ROWS]):
        node = nodes[row]
        if shift < 0:
            firsts[row], ends[row] = 0, len(level.codes)
        elif 0 <= node < n_above:
            first = np.int64(base[node >> shift]) + np.int64(delta[node])
            firsts[row] = first
            ends[row] = np.int64(base[(node + 1) >> shift]) + np.int64(delta[node + 1])
            _prefetch(codes + first * code_size)
            # An only child needs no bit.
            if table[BITS] and ends[row] > first + 1:
                _prefetch(table[BITS] + first)
        else:
            firsts[row] = ends[row] = 0


@njit(nogil=True)
def only_child_allowed(table: Nodes, shift: int) -> bool:
    """Whether a child without siblings needs no look at the filter: its parent is allowed. The
    root may not be, and siblings may have been added."""
    return shift >= 0 and not table[ADDED]
