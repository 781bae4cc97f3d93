"""Shapes of waves. Every shape has its own CUDA graph, so there are few, and searches are padded.

A wave of very different searches is cut into parts that pad little; parts that are small anyway
stay together, because the weights are read once a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

WIDTHS = (8, 16, 32, 50, 64, 80, 100, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1000, 1024)
QUERIES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
LENGTH_STEPS = ((200, 20), (600, 50), (2000, 100), (1 << 30, 500))
"""Up to a length, contexts are padded to multiples of a step."""

MAX_CONTEXT_TOKENS = 65_536
"""Of a part: its keys and values fit a card beside the weights."""

WEIGHT_BOUND_ROWS = 256
"""Rows that a matrix product takes in about the time of reading its weights."""


class Bucket(NamedTuple):
    """Queries, beams of each, tokens of each context."""

    queries: int
    width: int
    length: int

    @classmethod
    def of(cls, queries: int, width: int, length: int, longest: int) -> Bucket:
        """The smallest bucket that holds a part; contexts have at most `longest` positions."""
        step = next(step for end, step in LENGTH_STEPS if length <= end)
        return cls(
            _round_up(queries, QUERIES),
            _round_up(width, WIDTHS),
            min(-(-length // step) * step, longest),
        )


def _round_up(value: int, sizes: Sequence[int]) -> int:
    fitting = [size for size in sizes if size >= value]
    return fitting[0] if fitting else -(-value // sizes[-1]) * sizes[-1]


def parts(
    widths: Sequence[int], lengths: Sequence[int], steps: int, longest: int
) -> list[tuple[list[int], Bucket]]:
    """Cut a wave, given the width and the prompt length of each search, into the parts (positions
    of searches, and their bucket) that cost least; `steps`: generated positions."""
    order = sorted(range(len(widths)), key=lambda row: (widths[row], lengths[row]))
    count = len(order)
    # best[end]: cost of the first `end` searches, and where their last part starts.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, count + 1):
        options: list[tuple[float, int]] = []
        tallest = 0
        for start in range(end - 1, max(-1, end - 1 - QUERIES[-1]), -1):
            tallest = max(tallest, lengths[order[start]])
            bucket = Bucket.of(end - start, widths[order[end - 1]], tallest, longest)
            if end - start > 1 and bucket.queries * bucket.length > MAX_CONTEXT_TOKENS:
                break
            options.append((best[start][0] + _cost(bucket, steps), start))
        best.append(min(options))
    found: list[tuple[list[int], Bucket]] = []
    end = count
    while end:
        start = best[end][1]
        rows = order[start:end]
        tallest = max(lengths[row] for row in rows)
        widest = max(widths[row] for row in rows)
        found.append((rows, Bucket.of(len(rows), widest, tallest, longest)))
        end = start
    return found[::-1]


def _cost(bucket: Bucket, steps: int) -> float:
    """In rows through the layers."""
    generated = max(bucket.queries * bucket.width, WEIGHT_BOUND_ROWS)
    return steps * generated + max(bucket.queries * bucket.length, WEIGHT_BOUND_ROWS)
