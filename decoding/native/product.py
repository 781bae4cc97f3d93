"""Matrix products with the weights, by the way that this machine does them fastest.

Two ways: torch's own `linear`, and oneDNN's with weights laid out beforehand. Processors differ
(torch's float32 products take a narrow path on some and the best one on others), so nobody is asked
for a name: products of the width in question are timed, once a process. In the same manner
`computing_type` finds out whether bfloat16 pays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as functional
from torch import Tensor

from decoding.native.sizes import whole

Precision = Literal["auto", "float32", "bfloat16"]

MEASURED_ROWS = (8, 64)
MEASURED_RUNS = 5
WORTHWHILE = 1.2
"""How many times faster bfloat16 has to be before "auto" takes it."""

_HINT_ROWS = 256
_ops: Any = torch.ops  # Operators are found by name at run time.


class Product:
    """x (rows, in) → x·Wᵀ (rows, out), for one matrix W (out, in) on the CPU.

    Keeps a copy of W in another layout where that is faster; never where results must repeat to
    the bit from process to process (`measured` False). Rows are multiplied in one of a few numbers
    (decoding/native/sizes.py). Safe to use from several threads.
    """

    def __init__(self, weight: Tensor, *, measured: bool = True) -> None:
        self._weight = weight
        self._packed: Tensor | None = None
        if measured and _packing_pays(weight.dtype, weight.shape[1]):
            self._packed = _pack(weight)

    def __call__(self, rows: Tensor) -> Tensor:
        some = whole(rows)
        if self._packed is None:
            return functional.linear(some, self._weight)[: len(rows)]
        return _multiply(some, self._packed)[: len(rows)]


def computing_type(precision: Precision, hidden_size: int) -> torch.dtype:
    """The type that the body of a decoder of this width computes in, on this CPU.

    "auto" measures for a few milliseconds, once in a process for each width, so that all its
    generations compute alike: bfloat16 where its products are clearly faster, else float32. Scores
    are float32 in either case (`DecoderWeights.level_output`).
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    return _faster_type(hidden_size)


@lru_cache(maxsize=64)
def _faster_type(hidden_size: int) -> torch.dtype:
    exact, narrow = (
        _seconds(Product(torch.zeros(2 * hidden_size, hidden_size, dtype=kind)), kind, hidden_size)
        for kind in (torch.float32, torch.bfloat16)
    )
    return torch.bfloat16 if narrow * WORTHWHILE < exact else torch.float32


@lru_cache(maxsize=64)
def _packing_pays(kind: torch.dtype, width: int) -> bool:
    weight = torch.zeros(2 * width, width, dtype=kind)
    try:
        packed = _pack(weight)
        _multiply(torch.zeros(1, width, dtype=kind), packed)
    except (RuntimeError, AttributeError):
        return False  # This build of torch has no such products.
    plain = _seconds(lambda rows: functional.linear(rows, weight), kind, width)
    return _seconds(lambda rows: _multiply(rows, packed), kind, width) < plain


def _pack(weight: Tensor) -> Tensor:
    return cast(Tensor, _ops.mkldnn._reorder_linear_weight(weight, _HINT_ROWS))


def _multiply(rows: Tensor, packed: Tensor) -> Tensor:
    return cast(Tensor, _ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], ""))


@torch.inference_mode()
def _seconds(product: Callable[[Tensor], Tensor], kind: torch.dtype, width: int) -> float:
    """The best times of a narrow and a wide product, added."""
    total = 0.0
    for count in MEASURED_ROWS:
        rows, best = torch.zeros(count, width, dtype=kind), float("inf")
        for _ in range(MEASURED_RUNS):
            start = time.perf_counter()
            product(rows)
            best = min(best, time.perf_counter() - start)
        total += best
    return total
