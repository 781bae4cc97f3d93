"""The few sizes that matrix products come in.

oneDNN, which multiplies bfloat16 and matrices laid out beforehand, makes code for every shape that
it meets: milliseconds for the first product of a shape, about half a megabyte, and a cache of a
thousand shapes. Waves have any number of rows, prompts and tokens, so without rounding a server is
slow in its first minutes and grows by a gigabyte. Sizes are therefore rounded up: to powers of two
below eight, to multiples of eight up to 128, above that to one of eight sizes in each doubling, at
most an eighth more.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEP = 8
_SIZES_PER_DOUBLING = 8


def rounded(count: int) -> int:
    """The smallest of the sizes that is not below `count` (≥ 0)."""
    if count <= _STEP:
        return 1 << (count - 1).bit_length() if count else 0
    doubling = 1 << ((count - 1).bit_length() - 1)
    step = max(_STEP, doubling // _SIZES_PER_DOUBLING)
    return -(-count // step) * step


def roomy(count: int, width: int, dtype: torch.dtype) -> Tensor:
    """An empty (count, width): the first rows of a matrix of `rounded(count)` rows, so that `whole`
    need not copy. The others are 0."""
    rows = torch.empty((rounded(count), width), dtype=dtype)
    if count < len(rows):
        rows[count:] = 0
    return rows[:count]


def whole(rows: Tensor) -> Tensor:
    """(n, width) with more rows behind it, `rounded(n)` in all, of whatever values.

    What lies behind the rows in their own memory, where that is long enough; else a copy.
    """
    count, width = rows.shape
    wanted = rounded(count)
    if wanted == count:
        return rows
    room = rows.untyped_storage().nbytes() // rows.element_size() - rows.storage_offset()
    if rows.is_contiguous() and wanted * width <= room:
        return rows.as_strided((wanted, width), (width, 1))
    copy = roomy(count, width, rows.dtype)
    copy.copy_(rows)
    return copy.as_strided((wanted, width), (width, 1))
