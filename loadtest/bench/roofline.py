"""How much of the machine a search uses: useful arithmetic over the measured peak of products.

Useful work only: 2 · weights of the layers per position that somebody needs (of the last layer and
the prompt only keys and values, and the last token), each level's slice of the output matrix, and
attention over the positions that a row can see.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from decoding.native.product import Product
from decoding.weights import DecoderShape
from index.sid import SidLayout

PEAK_SIDES = (512, 1024, 2048)
PEAK_S = 0.3


def gemm_peak(dtype: torch.dtype, threads: int, seconds: float = PEAK_S) -> float:
    """Best floating-point operations per second of a square product: torch's plain one or the one
    that the engine takes, over sizes and runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    best = 0.0
    try:
        for side in PEAK_SIDES:
            left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
            engines = Product(right)
            engines(left)
            started = time.perf_counter()
            while time.perf_counter() - started < seconds / len(PEAK_SIDES):
                begun = time.perf_counter()
                torch.mm(left, right)
                middle = time.perf_counter()
                engines(left)
                least = min(middle - begun, time.perf_counter() - middle)
                best = max(best, 2 * side**3 / least)
    finally:
        torch.set_num_threads(before)
    return best


def useful_flops(
    shape: DecoderShape,
    intermediate: int,
    layout: SidLayout,
    *,
    queries: int,
    prompt_tokens: int,
    rows: Sequence[int],
) -> float:
    """Operations of a batch of searches. `rows[l]`: beams of one query that level l grows from,
    1 at level 0."""
    width, size = shape.hidden_size, shape.head_dim
    key_values = 2 * width * shape.key_heads * size
    rest = 2 * width * shape.heads * size + 3 * width * intermediate
    per_layer = key_values + rest
    whole_layers = shape.layers - 1
    weights = whole_layers * per_layer * prompt_tokens + key_values * prompt_tokens + rest
    # A query position multiplies and adds its scores and its mix: 4 · heads · size per key.
    seen = prompt_tokens * (prompt_tokens + 1) / 2
    attended = whole_layers * seen + prompt_tokens
    outputs = width * layout.level_sizes[0]
    for level, count in enumerate(rows[1:], start=1):
        weights += shape.layers * per_layer * count
        attended += shape.layers * count * (prompt_tokens + level)
        outputs += width * layout.level_sizes[level] * count
    return queries * (2.0 * (weights + outputs) + 4.0 * shape.heads * size * attended)
