"""What lies between the matrix products of a decoder, as Triton kernels: one program per row.

Arithmetic is float32, storage is the weights' type. Sizes of a model are compile-time constants;
sizes of a wave are not, so that a new wave shape compiles nothing. Source of the formulas: Qwen3
(arXiv 2505.09388), as in decoding/native/transformer.py.

On Hopper and later a kernel is launched while the one before it ends, and waits for it before it
reads or writes anything (programmatic dependent launch).
"""

# Triton's language is untyped; kernels are exempt from the type checker.
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportIndexIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


@cache
def overlaps(device: torch.device) -> bool:
    """Whether the device knows dependent launches."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def launch_options(tensor: Tensor) -> dict[str, Any]:
    """How kernels that begin with `wait_for_inputs` are launched."""
    if not overlaps(tensor.device):
        return {"DEPENDENT": False}
    return {"DEPENDENT": True, "launch_pdl": True}


class Placement(NamedTuple):
    """Where keys and values of a step's rows go, and which position a row has.

    Row r is token r % per_query of query r // per_query. Keys and values (Q, …) have strides
    (query, token, key head) and D adjacent numbers. The position is the token's own number
    (`lengths` None: a prompt), or `lengths[query] + offset` (a generated code).
    """

    keys: Tensor
    values: Tensor
    strides: tuple[int, int, int]
    per_query: int
    lengths: Tensor | None
    offset: int


def embed_and_normalise(
    token_ids: Tensor, embedding: Tensor, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """int32 (rows,) → their embeddings and RMSNorm of them, both (rows, d)."""
    rows, width = token_ids.shape[0], embedding.shape[1]
    state = torch.empty((rows, width), dtype=embedding.dtype, device=embedding.device)
    normed = torch.empty_like(state)
    _embed_kernel[(rows,)](
        token_ids,
        embedding,
        weight,
        state,
        normed,
        epsilon,
        WIDTH=width,
        BLOCK=_power(width),
        **launch_options(state),
    )
    return state, normed


def add_and_normalise(state: Tensor, update: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Adds `update` (rows, d) to `state` in place → RMSNorm of the sum."""
    normed = torch.empty_like(state)
    width = state.shape[1]
    _add_kernel[(state.shape[0],)](
        state,
        update,
        weight,
        normed,
        epsilon,
        WIDTH=width,
        BLOCK=_power(width),
        **launch_options(state),
    )
    return normed


def turn_heads(
    projected: Tensor,
    norm: Tensor,
    cosine: Tensor,
    sine: Tensor,
    heads: int,
    key_heads: int,
    epsilon: float,
    placement: Placement,
) -> None:
    """RMSNorm and rotation of queries (in place) and keys; keys and values go to their place.

    `projected` (rows, (heads + 2·key_heads)·D); `norm` (heads + key_heads, D); `cosine`, `sine`
    float32 (positions, D / 2).
    """
    size = norm.shape[1]
    lengths = placement.lengths
    _turn_kernel[(projected.shape[0],)](
        projected,
        norm,
        cosine,
        sine,
        placement.keys,
        placement.values,
        projected if lengths is None else lengths,
        *placement.strides,
        placement.per_query,
        placement.offset,
        epsilon,
        GENERATED=lengths is not None,
        HEADS=heads,
        KEY_HEADS=key_heads,
        SIZE=size,
        BLOCK_HEADS=_power(heads + 2 * key_heads),
        BLOCK_HALF=_power(size // 2),
        **launch_options(projected),
    )


def silu_multiply(gate_up: Tensor) -> Tensor:
    """(rows, 2·I) → silu(first half) · second half, (rows, I)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    product = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    block = min(2048, _power(width))
    _silu_kernel[(rows, triton.cdiv(width, block))](
        gate_up, product, WIDTH=width, BLOCK=block, **launch_options(product)
    )
    return product


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


@triton.jit
def wait_for_inputs(DEPENDENT: tl.constexpr):
    """Before the first read of what an earlier kernel wrote, and the first write."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _normalise(row, weight, inside, column, epsilon, WIDTH: tl.constexpr):
    scale = tl.rsqrt(tl.sum(row * row, 0) / WIDTH + epsilon)
    return row * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _embed_kernel(
    token_ids,
    embedding,
    weight,
    state,
    normed,
    epsilon,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_inputs(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    token = tl.load(token_ids + row).to(tl.int64)
    value = tl.load(embedding + token * WIDTH + column, mask=inside, other=0.0)
    tl.store(state + row * WIDTH + column, value, mask=inside)
    value = _normalise(value.to(tl.float32), weight, inside, column, epsilon, WIDTH)
    tl.store(normed + row * WIDTH + column, value.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _add_kernel(
    state,
    update,
    weight,
    normed,
    epsilon,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_inputs(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = row * WIDTH + column
    value = tl.load(state + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
    narrow = value.to(state.dtype.element_ty)
    tl.store(state + at, narrow, mask=inside)
    value = _normalise(narrow.to(tl.float32), weight, inside, column, epsilon, WIDTH)
    tl.store(normed + at, value.to(normed.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["query_stride", "token_stride", "per_query", "offset"])
def _turn_kernel(
    projected,
    norm,
    cosine,
    sine,
    keys,
    values,
    lengths,
    query_stride,
    token_stride,
    head_stride,
    per_query,
    offset,
    epsilon,
    GENERATED: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_inputs(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    query, token = row // per_query, row % per_query
    position = token
    if GENERATED:
        position = tl.load(lengths + query).to(tl.int64) + offset
    HALF: tl.constexpr = SIZE // 2
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    pair = tl.arange(0, BLOCK_HALF)[None, :]
    exists = (head < HEADS + 2 * KEY_HEADS) & (pair < HALF)
    turns = exists & (head < HEADS + KEY_HEADS)
    at = projected + row * ((HEADS + 2 * KEY_HEADS) * SIZE) + head * SIZE + pair
    first = tl.load(at, mask=exists, other=0.0)
    second = tl.load(at + HALF, mask=exists, other=0.0)
    x, y = first.to(tl.float32), second.to(tl.float32)
    scale = tl.rsqrt((tl.sum(x * x, 1) + tl.sum(y * y, 1)) / SIZE + epsilon)[:, None]
    weight = norm + head * SIZE + pair
    x = x * scale * tl.load(weight, mask=turns, other=0.0).to(tl.float32)
    y = y * scale * tl.load(weight + HALF, mask=turns, other=0.0).to(tl.float32)
    c = tl.load(cosine + position * HALF + pair, mask=pair < HALF, other=0.0)
    s = tl.load(sine + position * HALF + pair, mask=pair < HALF, other=0.0)
    kind = projected.dtype.element_ty
    turned_first, turned_second = (x * c - y * s).to(kind), (y * c + x * s).to(kind)
    is_query = exists & (head < HEADS)
    tl.store(at, turned_first, mask=is_query)
    tl.store(at + HALF, turned_second, mask=is_query)
    place = query * query_stride + token * token_stride + pair
    is_key = turns & (head >= HEADS)
    key = keys + place + (head - HEADS) * head_stride
    tl.store(key, turned_first, mask=is_key)
    tl.store(key + HALF, turned_second, mask=is_key)
    is_value = exists & (head >= HEADS + KEY_HEADS)
    value = values + place + (head - HEADS - KEY_HEADS) * head_stride
    tl.store(value, first, mask=is_value)
    tl.store(value + HALF, second, mask=is_value)


@triton.jit
def _silu_kernel(
    gate_up, product, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):
    wait_for_inputs(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = gate_up + row * 2 * WIDTH + column
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(product + row * WIDTH + column, result.to(product.dtype.element_ty), mask=inside)
