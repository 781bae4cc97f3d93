"""Numbers of compiled loops: bfloat16 as the upper halves of float32, and eˣ.

An array of a loop is float32, or bfloat16 seen as uint16; `wide` reads an element of either and
`put` writes one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Floats = NDArray[np.float32]

# How a loop that is shared among threads is compiled. Sums may be reordered; infinities keep their
# meaning. Without `forceinline` the process that compiles runs the loop as it was optimised alone,
# and one that loads it from the cache as it was optimised again together with its caller: sums in
# another order, other last digits.
LOOP: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz", "nnan"},
    "forceinline": True,
}
HALF, ONE, ZERO = np.float32(0.5), np.float32(1.0), np.float32(0.0)
_LOG2_E = np.float32(1.44269504)
_FLOOR = np.float32(-126.0)
# 2ʳ on [-½, ½], minimax in relative error 2e-8.
_C1, _C2, _C3 = np.float32(0.69314718), np.float32(0.24022651), np.float32(0.05550357)
_C4, _C5, _C6 = np.float32(0.00961813), np.float32(0.00133988), np.float32(0.00015403)


def raw(tensor: Tensor) -> Array:
    """A tensor's memory as the kernels read it."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def wide(value: Any) -> Any:
    """An element of either type as float32; exists in compiled code only."""
    raise NotImplementedError


def put(target: Any, index: Any, value: Any) -> None:
    """target[index] = value, rounded to nearest even where the target is bfloat16."""
    raise NotImplementedError


def _wide_narrow(value: Any) -> Any:
    return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)


def _wide_exact(value: Any) -> Any:
    return np.float32(value)


@overload(wide)
def _overload_wide(value: Any) -> Any:
    return _wide_narrow if value == types.uint16 else _wide_exact


def _put_narrow(target: Any, index: Any, value: Any) -> None:
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd)
    target[index] = np.uint16(rounded >> np.uint32(16))


def _put_exact(target: Any, index: Any, value: Any) -> None:
    target[index] = value


@overload(put)
def _overload_put(target: Any, index: Any, value: Any) -> Any:
    return _put_narrow if target.dtype == types.uint16 else _put_exact


@njit(nogil=True, error_model="numpy", fastmath={"contract"})
def exponential(x: np.float32) -> np.float32:
    """eˣ for x ≤ 0."""
    scaled = max(np.float32(x * _LOG2_E), _FLOOR)
    whole = np.int32(scaled - HALF)  # Truncation: nearest, as it is not positive.
    r = np.float32(scaled - np.float32(whole))
    power = ONE + r * (_C1 + r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * _C6)))))
    return np.float32(power * np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32))
