"""Attention of one generated position: over the context that a query's beams share, then over each
beam's own earlier positions, found by row number.

The query heads of all beams that share a key head are folded into the rows of one matrix, so the
context's keys are read once for all of them and the products run on the tensor cores (online
softmax, float32 sums; flash attention, arXiv 2205.14135). Where that gives too few programs to
fill the device, the context is split. A second kernel, which has a program for every few rows,
merges the parts by their log-sum-exp and adds the own positions.

Shapes: Q queries, W beams a query, rows = Q·W, C key heads, G heads of a key head, D head_dim.
"""

# Triton's language is untyped; kernels are exempt from the type checker.
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportIndexIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoding.cuda.kernels import launch_options, wait_for_inputs

LOG2_E = 1.4426950408889634
MAX_SPLITS = 32
PROGRAMS = 132
"""That keep the device busy: one for each of an H100's multiprocessors."""


class OwnPositions(NamedTuple):
    """Generated positions of the rows, the present one included: keys and values (S, rows, C, D)
    of which the first `steps` are there; ancestry int32 (S, rows): row of that step, absolute.
    The last of the `steps` is the row itself, its ancestry is not read."""

    keys: Tensor
    values: Tensor
    ancestry: Tensor
    steps: int


class Tiles(NamedTuple):
    """Block sizes of the context's kernel: rows, context positions; parts of the context; how a
    program runs."""

    rows: int
    positions: int
    splits: int
    warps: int
    stages: int


def tiles(folded_rows: int, pairs: int, longest: int, dtype: torch.dtype) -> Tiles:
    """`folded_rows` = W·G rows in each of `pairs` = Q·C products over up to `longest` positions."""
    largest, positions, stages = (32, 32, 1) if dtype == torch.float32 else (64, 64, 3)
    rows = min(largest, max(16, triton.next_power_of_2(folded_rows)))
    programs = triton.cdiv(folded_rows, rows) * pairs
    splits = min(PROGRAMS // programs, triton.cdiv(longest, positions), MAX_SPLITS)
    return Tiles(rows, positions, max(1, splits), 4, stages)


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
    rows, device = projected.shape[0], projected.device
    width, group = rows // queries, heads // key_heads
    tile = tiles(width * group, queries * key_heads, longest, projected.dtype)
    parts = torch.empty((tile.splits, rows, heads, size), dtype=torch.float32, device=device)
    weights = torch.empty((tile.splits, rows, heads), dtype=torch.float32, device=device)
    padded_size = max(16, triton.next_power_of_2(size))
    grid = (triton.cdiv(width * group, tile.rows), queries * key_heads, tile.splits)
    _context_kernel[grid](
        projected,
        keys,
        values,
        lengths,
        parts,
        weights,
        longest,
        width,
        rows,
        tile.splits,
        LOG2_E,
        ROW_STRIDE=projected.stride(0),
        KEY_HEADS=key_heads,
        GROUP=group,
        SIZE=size,
        BLOCK_ROWS=tile.rows,
        BLOCK_POSITIONS=tile.positions,
        BLOCK_SIZE=padded_size,
        PRECISION="ieee" if projected.dtype == torch.float32 else "tf32",
        num_warps=tile.warps,
        num_stages=tile.stages,
        **launch_options(projected),
    )
    mixed = torch.empty((rows, heads * size), dtype=projected.dtype, device=device)
    generated = OwnPositions(keys, values, lengths, 0) if own is None else own
    block = 4 if rows * heads <= 4096 else 16
    _finish_kernel[(triton.cdiv(rows * heads, block),)](
        projected,
        generated.keys,
        generated.values,
        generated.ancestry,
        parts,
        weights,
        mixed,
        rows,
        tile.splits,
        LOG2_E,
        STEPS=generated.steps,
        ROW_STRIDE=projected.stride(0),
        KEY_HEADS=key_heads,
        GROUP=group,
        SIZE=size,
        BLOCK_ROWS=block,
        BLOCK_SIZE=padded_size,
        num_warps=4,
        **launch_options(projected),
    )
    return mixed


@triton.jit(do_not_specialize=["longest", "width", "rows", "splits"])
def _context_kernel(
    projected,
    keys,
    values,
    lengths,
    parts,
    weights,
    longest,
    width,
    rows,
    splits,
    log2_e,
    ROW_STRIDE: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Each part's normalised sums (splits, rows, H, D) and log-sum-exp, base 2."""
    wait_for_inputs(DEPENDENT)
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

    place = (split * rows + row) * HEADS + head
    # A part that is empty has total 0: its sums are 0, and its weight is 2 to the -inf.
    sums = sums / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(weights + place, largest + tl.log2(tl.maximum(total, 1e-38)), mask=alive)
    place = place[:, None] * SIZE + column[None, :]
    tl.store(parts + place, sums, mask=alive[:, None] & inside)


@triton.jit(do_not_specialize=["rows", "splits"])
def _finish_kernel(
    projected,
    own_keys,
    own_values,
    ancestry,
    parts,
    weights,
    mixed,
    rows,
    splits,
    log2_e,
    STEPS: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Parts of the context and own positions become one. A line is one head of a row."""
    wait_for_inputs(DEPENDENT)
    HEADS: tl.constexpr = KEY_HEADS * GROUP
    line = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    count = rows.to(tl.int64) * HEADS
    there = line < count
    row, head = line // HEADS, line % HEADS
    column = tl.arange(0, BLOCK_SIZE)
    inside = there[:, None] & (column[None, :] < SIZE)
    place = line[:, None] * SIZE + column[None, :]
    # The first part is never empty, so `largest` is finite.
    largest = tl.load(weights + line, mask=there, other=0.0)
    total = tl.full((BLOCK_ROWS,), 1.0, tl.float32)
    sums = tl.load(parts + place, mask=inside, other=0.0)
    part_at, weight_at = parts + place, weights + line
    for _ in range(1, splits):
        part_at += count * SIZE
        weight_at += count
        weight = tl.load(weight_at, mask=there, other=0.0)
        part = tl.load(part_at, mask=inside, other=0.0)
        new_largest = tl.maximum(largest, weight)
        shrink, share = tl.exp2(largest - new_largest), tl.exp2(weight - new_largest)
        total = total * shrink + share
        sums = sums * shrink[:, None] + part * share[:, None]
        largest = new_largest
    if STEPS > 0:
        at = row[:, None] * ROW_STRIDE + head[:, None] * SIZE + column[None, :]
        rotated = tl.load(projected + at, mask=inside, other=0.0).to(tl.float32)
        for step in tl.static_range(STEPS):
            ancestor = row
            if step < STEPS - 1:
                ancestor = tl.load(ancestry + step * rows + row, mask=there, other=0).to(tl.int64)
            own = ((step * rows + ancestor) * KEY_HEADS + head // GROUP) * SIZE
            own = own[:, None] + column[None, :]
            key = tl.load(own_keys + own, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(own_values + own, mask=inside, other=0.0).to(tl.float32)
            score = tl.sum(rotated * key, 1) * log2_e
            new_largest = tl.maximum(largest, score)
            shrink, share = tl.exp2(largest - new_largest), tl.exp2(score - new_largest)
            total = total * shrink + share
            sums = sums * shrink[:, None] + value * share[:, None]
            largest = new_largest
    tl.store(mixed + place, (sums / total[:, None]).to(mixed.dtype.element_ty), mask=inside)
