"""Of the compiled expansion: the log-softmax of one row, and its codes in blocks of 64.

The maxima of the blocks are found on the way, so that codes above a bound are looked for in few of
them; the bits of a block of codes are one word. e^x is 2^n · 2^r with |r| ≤ 1/2 and a polynomial
for 2^r (relative error 1e-7, our own minimax fit).
"""

# To the type checker an element of an array may be an array, and intrinsics take one argument more.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false
from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BLOCK = 64
_INT32 = ir.IntType(32)

_LOG2_E = np.float32(1.4426950408889634)
# Adding it rounds to an integer, which then stands in the low bits, with the bias of an exponent.
_ROUND = np.float32(12582912.0 + 127.0)
_SMALLEST_EXPONENT = np.float32(-126.0)
_P1 = np.float32(0.6931469775984721)
_P2 = np.float32(0.24022242084919224)
_P3 = np.float32(0.055507337442443766)
_P4 = np.float32(0.009671512660564534)
_P5 = np.float32(0.001326472689913448)


def _load_block(builder: Any, address: Any, element: Any) -> Any:
    pointer = builder.inttoptr(address, ir.VectorType(element, BLOCK).as_pointer())
    return builder.load(pointer, align=4)


def _splat(builder: Any, value: Any) -> Any:
    """A block that has the value in every place."""
    block = ir.VectorType(value.type, BLOCK)
    one = builder.insert_element(ir.Constant(block, ir.Undefined), value, ir.IntType(32)(0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), None)
    return builder.shuffle_vector(one, ir.Constant(block, ir.Undefined), places)


@intrinsic
def _block_maximum(_typing: Any, address: Any) -> Any:
    """The largest of the float32 block at an address, as an ordered integer."""

    # Integers, since then a NaN needs no care.
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        raw = _load_block(builder, arguments[0], _INT32)
        sign = builder.ashr(raw, _splat(builder, _INT32(31)))
        ordered = builder.xor(raw, builder.and_(sign, _splat(builder, _INT32(0x7FFFFFFF))))
        kind = ir.FunctionType(_INT32, [ordered.type])
        name = f"llvm.vector.reduce.smax.v{BLOCK}i32"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(reduce, [ordered])

    return types.int32(address), generate


@intrinsic
def _block_above(_typing: Any, address: Any, threshold: Any) -> Any:
    """One bit for each of the float32 block at an address: whether it reaches the threshold."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        values = _load_block(builder, arguments[0], ir.FloatType())
        above = builder.fcmp_ordered(">=", values, _splat(builder, arguments[1]))
        return builder.bitcast(above, ir.IntType(BLOCK))

    return types.uint64(address, types.float32), generate


@njit(nogil=True, inline="always")
def as_ordered(raw: np.int32) -> np.int32:
    """Signed integers in the order of the floats with these bits; its own inverse."""
    return raw ^ ((raw >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit(nogil=True)
def block_maxima(values: Floats, blocks: NDArray[np.int32]) -> np.float32:
    """Fills the maximum of each block of codes, as ordered integers; returns the largest."""
    raw = values.view(np.int32)
    whole = len(values) // BLOCK
    overall = np.int32(-0x80000000)
    for block in range(whole):
        blocks[block] = _block_maximum(values.ctypes.data + block * BLOCK * 4)
        overall = max(overall, blocks[block])
    if whole * BLOCK < len(values):
        largest = np.int32(-0x80000000)
        for position in range(whole * BLOCK, len(values)):
            largest = max(largest, as_ordered(raw[position]))
        blocks[whole] = largest
        overall = max(overall, largest)
    return np.int32(as_ordered(overall)).view(np.float32)


@njit(nogil=True, fastmath={"contract"})
def _exp(value: np.float32) -> np.float32:
    """e^value for value ≤ 0; exactly 1 for 0, NaN for any NaN."""
    scaled = value * _LOG2_E
    scaled = _SMALLEST_EXPONENT if scaled < _SMALLEST_EXPONENT else scaled
    shifted = np.float32(scaled + _ROUND)
    rest = scaled - (shifted - _ROUND)
    power = _P5 * rest + _P4
    power = power * rest + _P3
    power = power * rest + _P2
    power = power * rest + _P1
    power = np.float32(power * rest + np.float32(1.0))
    return power * np.int32(shifted.view(np.int32) << np.int32(23)).view(np.float32)


@njit(nogil=True, fastmath={"reassoc", "nsz", "contract"})
def log_sum_of(values: Floats, maximum: np.float32) -> np.float32:
    """log Σ e^(value - maximum), not negative."""
    total = np.float32(0.0)
    for position in range(len(values)):
        total += _exp(values[position] - maximum)
    return np.float32(np.log(total))


@njit(nogil=True)
def codes_above(values: Floats, first: int, threshold: np.float32) -> np.uint64:
    """One bit per code of the block at `first`: whether its value reaches the threshold."""
    if first + BLOCK <= len(values):
        return _block_above(values.ctypes.data + first * 4, threshold)
    word = np.uint64(0)
    for position in range(len(values) - first):
        above = np.uint64(values[first + position] >= threshold)
        word |= above << np.uint64(position)
    return word
