"""Attention of one generated position: over the context that a query's beams share, then over each
beam's own earlier positions, found by row number.

The query heads of all beams that share a key head are folded into the rows of one matrix, so the
context's keys are read once for all of them and the products run on the tensor cores (online
softmax, float32 sums; flash attention, arXiv 2205.14135). Where that gives too few programs to
fill the device, the context is split and the parts are merged by their log-sum-exp.

Shapes: Q queries, W beams a query, rows = Q·W, C key heads, G heads of a key head, D head_dim.
"""

# Triton's language is untyped; kernels are exempt from the type checker.
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportIndexIssue=false
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
MAX_SPLITS = 32
PROGRAMS = 264
"""Enough to keep the device busy: two for each of an H100's 132 multiprocessors."""


class OwnPositions(NamedTuple):
    """Generated positions of the rows, the present one included: keys and values (S, rows, C, D)
    of which the first `count` are there; ancestry int32 (S, rows): row of that step, absolute.
    The last of the `count` is the row itself, its ancestry is not read."""

    keys: Tensor
    values: Tensor
    ancestry: Tensor
    count: int


class Tiles(NamedTuple):
    """Block sizes of the kernel: rows, context positions, and parts of the context."""

    rows: int
    positions: int
    splits: int


def tiles(folded_rows: int, pairs: int, longest: int, dtype: torch.dtype) -> Tiles:
    """`folded_rows` = W·G rows in each of `pairs` = Q·C products over up to `longest` positions."""
    largest = 32 if dtype == torch.float32 else 128
    rows = min(largest, max(16, triton.next_power_of_2(folded_rows)))
    positions = 32 if dtype == torch.float32 else 64
    programs = triton.cdiv(folded_rows, rows) * pairs
    splits = min(triton.cdiv(PROGRAMS, programs), triton.cdiv(longest, 2 * positions), MAX_SPLITS)
    return Tiles(rows, positions, max(1, splits))


def attend(
    projected: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    heads: int,
    own: OwnPositions | None = None,
) -> Tensor:
    """Queries, the first `heads`·D columns of `projected` (rows, …), normalised, rotated and
    scaled, over keys and values (Q, C, T, D) of which `lengths` int32 (Q,) are there, at least one
    → (rows, heads·D)."""
    queries, key_heads, longest, size = keys.shape
    rows = projected.shape[0]
    width, group = rows // queries, heads // key_heads
    tile = tiles(width * group, queries * key_heads, longest, projected.dtype)
    mixed = torch.empty((rows, heads * size), dtype=projected.dtype, device=projected.device)
    parts, weights = mixed, mixed
    if tile.splits > 1:
        shape = (tile.splits, rows, heads)
        parts = torch.empty((*shape, size), dtype=torch.float32, device=projected.device)
        weights = torch.empty(shape, dtype=torch.float32, device=projected.device)
    generated = OwnPositions(keys, values, lengths, 0) if own is None else own
    exact = projected.dtype == torch.float32
    grid = (triton.cdiv(width * group, tile.rows), queries * key_heads, tile.splits)
    _attend_kernel[grid](
        projected,
        keys,
        values,
        lengths,
        generated.keys,
        generated.values,
        generated.ancestry,
        parts,
        weights,
        longest,
        width,
        rows,
        generated.count,
        tile.splits,
        LOG2_E,
        ROW_STRIDE=projected.stride(0),
        KEY_HEADS=key_heads,
        GROUP=group,
        SIZE=size,
        SPLIT=tile.splits > 1,
        BLOCK_ROWS=tile.rows,
        BLOCK_POSITIONS=tile.positions,
        BLOCK_SIZE=max(16, triton.next_power_of_2(size)),
        PRECISION="ieee" if exact else "tf32",
        num_warps=8 if tile.rows == 128 else 4,
        num_stages=1 if exact else 2,
    )
    if tile.splits > 1:
        block = max(1, 2048 // triton.next_power_of_2(size))
        _merge_kernel[(triton.cdiv(rows * heads, block),)](
            parts,
            weights,
            mixed,
            rows * heads,
            tile.splits,
            SIZE=size,
            BLOCK_ROWS=block,
            BLOCK_SIZE=triton.next_power_of_2(size),
        )
    return mixed


@triton.jit(do_not_specialize=["longest", "width", "rows", "steps", "splits"])
def _attend_kernel(
    projected,
    keys,
    values,
    lengths,
    own_keys,
    own_values,
    ancestry,
    parts,
    weights,
    longest,
    width,
    rows,
    steps,
    splits,
    log2_e,
    ROW_STRIDE: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    HEADS: tl.constexpr = KEY_HEADS * GROUP
    pair = tl.program_id(1)
    query, key_head = pair // KEY_HEADS, pair % KEY_HEADS
    split = tl.program_id(2)
    folded = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    beam = folded // GROUP
    alive = beam < width
    row = (query * width + tl.where(alive, beam, 0)).to(tl.int64)
    head = key_head * GROUP + folded % GROUP
    column = tl.arange(0, BLOCK_SIZE)
    inside = column[None, :] < SIZE
    at = row[:, None] * ROW_STRIDE + head[:, None] * SIZE + column[None, :]
    rotated = tl.load(projected + at, mask=alive[:, None] & inside, other=0.0)

    length = tl.load(lengths + query)
    per_split = tl.cdiv(tl.cdiv(length, BLOCK_POSITIONS), splits) * BLOCK_POSITIONS
    start = split * per_split
    end = tl.minimum(start + per_split, length)
    largest = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_SIZE), tl.float32)
    offset = tl.arange(0, BLOCK_POSITIONS)
    context = pair.to(tl.int64) * longest * SIZE
    for first in range(start, end, BLOCK_POSITIONS):
        there = (first + offset) < end
        place = context + (first + offset)[:, None] * SIZE + column[None, :]
        key = tl.load(keys + place, mask=there[:, None] & inside, other=0.0)
        scores = tl.dot(rotated, tl.trans(key), input_precision=PRECISION) * log2_e
        scores = tl.where(there[None, :], scores, -float("inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp2(largest - new_largest)
        share = tl.exp2(scores - new_largest[:, None])
        total = total * shrink + tl.sum(share, 1)
        value = tl.load(values + place, mask=there[:, None] & inside, other=0.0)
        sums = sums * shrink[:, None]
        sums = tl.dot(share.to(value.dtype), value, sums, input_precision=PRECISION)
        largest = new_largest

    if split == 0:
        # The first part is never empty, so `largest` is finite here.
        precise = rotated.to(tl.float32)
        for step in range(0, steps):
            ancestor = tl.load(ancestry + step * rows + row, mask=alive, other=0).to(tl.int64)
            ancestor = tl.where(step == steps - 1, row, ancestor)
            place = ((step * rows + ancestor) * KEY_HEADS + key_head) * SIZE
            place = place[:, None] + column[None, :]
            key = tl.load(own_keys + place, mask=alive[:, None] & inside, other=0.0)
            score = tl.sum(precise * key.to(tl.float32), 1) * log2_e
            new_largest = tl.maximum(largest, score)
            shrink = tl.exp2(largest - new_largest)
            share = tl.exp2(score - new_largest)
            total = total * shrink + share
            value = tl.load(own_values + place, mask=alive[:, None] & inside, other=0.0)
            sums = sums * shrink[:, None] + share[:, None] * value.to(tl.float32)
            largest = new_largest

    if SPLIT:
        place = (split * rows + row) * HEADS + head
        # An empty part has total 0: its weight is exp2(-inf) = 0, its sums are 0.
        sums = sums / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(weights + place, largest + tl.log2(tl.maximum(total, 1e-38)), mask=alive)
        place = place[:, None] * SIZE + column[None, :]
        tl.store(parts + place, sums, mask=alive[:, None] & inside)
    else:
        place = row[:, None] * (HEADS * SIZE) + head[:, None] * SIZE + column[None, :]
        result = (sums / total[:, None]).to(parts.dtype.element_ty)
        tl.store(parts + place, result, mask=alive[:, None] & inside)


@triton.jit(do_not_specialize=["count", "splits"])
def _merge_kernel(
    parts,
    weights,
    mixed,
    count,
    splits,
    SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    there = row < count
    column = tl.arange(0, BLOCK_SIZE)
    inside = there[:, None] & (column[None, :] < SIZE)
    largest = tl.load(weights + row, mask=there, other=0.0)
    total = tl.full((BLOCK_ROWS,), 1.0, tl.float32)
    place = row[:, None] * SIZE + column[None, :]
    sums = tl.load(parts + place, mask=inside, other=0.0)
    at, weight_at = parts + place, weights + row
    for _ in range(1, splits):
        at += count * SIZE
        weight_at += count
        weight = tl.load(weight_at, mask=there, other=0.0)
        part = tl.load(at, mask=inside, other=0.0)
        new_largest = tl.maximum(largest, weight)
        shrink, share = tl.exp2(largest - new_largest), tl.exp2(weight - new_largest)
        total = total * shrink + share
        sums = sums * shrink[:, None] + part * share[:, None]
        largest = new_largest
    tl.store(mixed + place, (sums / total[:, None]).to(mixed.dtype.element_ty), mask=inside)
