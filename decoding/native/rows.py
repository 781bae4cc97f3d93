"""How the ragged rows of a wave lie side by side for attention.

Rows come prompt by prompt, any number each. The matrix products with the weights see them as they
are; the products with a prompt's context want each of its rows and heads in one matrix. So every
row has a slot for each head: neighbouring prompts of about the same width make a block of shape
(prompts, heads, widest, D), where equal widths waste nothing and very different ones never share.
Blocks come in few shapes (see sizes.py): a power of two of prompts, and a rounded widest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from decoding.native.sizes import rounded

PADDING = 0.25
"""A block may have this many empty slots for each row in it."""

BLOCK_SLOTS = 1 << 14
"""Slots of a block with several prompts: its scores stay in the cache."""


class Block(NamedTuple):
    """Prompts and rows from … up to, the block's first slot, and the rows it has room for each."""

    prompts: slice
    rows: slice
    slot: int
    widest: int


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """first, stride int64 (rows,): head h of a row is in slot first + h·stride."""

    first: NDArray[np.int64]
    stride: NDArray[np.int64]
    blocks: list[Block]
    slots: int

    @classmethod
    def of(cls, counts: Sequence[int], heads: int) -> Rows:
        """`counts`: rows of each prompt, in order; some may have none."""
        first: list[NDArray[np.int64]] = []
        strides: list[int] = []
        blocks: list[Block] = []
        slot = row = 0
        for start, end, widest in _blocks(counts, heads):
            for number, count in enumerate(counts[start:end]):
                first.append(slot + number * heads * widest + np.arange(count))
                strides.append(widest)
            begin, row = row, row + sum(counts[start:end])
            if row > begin:
                blocks.append(Block(slice(start, end), slice(begin, row), slot, widest))
            slot += (end - start) * heads * widest
        return cls(np.concatenate(first), np.repeat(strides, counts), blocks, slot)


def _blocks(counts: Sequence[int], heads: int) -> Iterator[tuple[int, int, int]]:
    """Runs in pieces of a power of two of prompts, with the rounded widest of each piece."""
    for begin, end, _ in _runs(counts, heads):
        start = begin
        while start < end:
            stop = start + (1 << ((end - start).bit_length() - 1))
            yield start, stop, rounded(max(counts[start:stop]))
            start = stop


def _runs(counts: Sequence[int], heads: int) -> list[tuple[int, int, int]]:
    """(first prompt, end, widest) of each block: as long as padding and size allow."""
    runs: list[tuple[int, int, int]] = []
    start = widest = total = 0
    for prompt, count in enumerate(counts):
        wider = max(widest, count)
        slots = (prompt + 1 - start) * wider
        too_padded = slots > (1 + PADDING) * (total + count)
        if prompt > start and (too_padded or slots * heads > BLOCK_SLOTS):
            runs.append((start, prompt, widest))
            start, widest, total = prompt, count, count
        else:
            widest, total = wider, total + count
    runs.append((start, len(counts), widest))
    return runs
