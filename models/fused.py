"""RMSNorm, SwiGLU's gate, and heads normalised and rotated, for training: differentiable, and in
one pass over memory where that is possible (bfloat16 on a CPU, `models.fused_kernels`).

Everywhere else they are a few operations of torch, which is also what the compiled passes are
tested against. Weights are float32 or the state's type; results have the state's type.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.autograd.function import FunctionCtx

from decoding.native.kernels import gate
from decoding.native.numbers import raw
from decoding.team import torch_team
from models import fused_kernels
from models.fused_kernels import BLOCK


def rms_norm(state: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / √(mean x² + ε) · weight over the last axis; `state` (…, d), `weight` (d,)."""
    if _compiled(state, weight):
        return cast(Tensor, _RmsNorm.apply(state, weight, epsilon))
    return functional.rms_norm(state, weight.shape, weight.to(state.dtype), epsilon)


def gated_unit(both: Tensor) -> Tensor:
    """silu(g)·u (…, I) of `both` = (g, u), (…, 2·I)."""
    if _compiled(both):
        return cast(Tensor, _GatedUnit.apply(both))
    gates, ups = both.chunk(2, dim=-1)
    return functional.silu(gates) * ups


def parted_heads(
    projected: Tensor,
    weight: Tensor,
    epsilon: float,
    cosine: Tensor,
    sine: Tensor,
    heads: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, H, T, D), keys and values (B, C, T, D) of `projected` (B, T, H + 2·C, D), queries
    and keys normalised by `weight` (H + C, D) and rotated; `heads` = (H, C), either may be 0.

    `cosine`, `sine` float32 (B, T, D / 2).
    """
    if _compiled(projected, weight):
        parts = _PartedHeads.apply(projected, weight, epsilon, cosine, sine, heads)
        return cast(tuple[Tensor, Tensor, Tensor], parts)
    asked, held = heads
    query, key, value = projected.transpose(1, 2).split((asked, held, held), dim=1)
    narrow = weight.to(projected.dtype)[:, None]
    return (
        _rotated(_normed(query, narrow[:asked], epsilon), cosine, sine),
        _rotated(_normed(key, narrow[asked:], epsilon), cosine, sine),
        value,
    )


def _compiled(state: Tensor, weight: Tensor | None = None) -> bool:
    fits = weight is None or weight.dtype == torch.float32
    return state.device.type == "cpu" and state.dtype == torch.bfloat16 and fits


def _normed(state: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return functional.rms_norm(state, state.shape[-1:], None, epsilon) * weight


def _rotated(state: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    turn, tilt = cosine[:, None].to(state.dtype), sine[:, None].to(state.dtype)
    low, high = state.chunk(2, dim=-1)
    return torch.cat((low * turn - high * tilt, high * turn + low * tilt), dim=-1)


def _blocks(rows: int) -> int:
    return -(-rows // BLOCK)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, state: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rows = state.detach().reshape(-1, state.shape[-1])
        out, scales = torch.empty_like(rows), rows.new_empty(len(rows), dtype=torch.float32)
        fused_kernels.normalise(
            torch_team(), raw(rows), raw(_own(weight)), epsilon, raw(out), raw(scales)
        )
        ctx.save_for_backward(rows, weight, scales)
        return out.view(state.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight, scales = cast(tuple[Tensor, Tensor, Tensor], ctx.saved_tensors)
        slope = gradients[0].reshape(rows.shape).contiguous()
        out = torch.empty_like(rows)
        sums = weight.new_zeros(_blocks(len(rows)), rows.shape[1])
        fused_kernels.normalise_backward(
            torch_team(), *map(raw, (slope, rows, _own(weight), scales, out, sums))
        )
        return out.view(gradients[0].shape), sums.sum(0), None


class _GatedUnit(torch.autograd.Function):
    """Keeps its input only and computes silu again for the gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, both: Tensor) -> Tensor:
        rows = both.detach().reshape(-1, both.shape[-1])
        out = rows.new_empty(len(rows), rows.shape[1] // 2)
        gate(torch_team(), raw(rows), raw(out))
        ctx.save_for_backward(rows)
        return out.view(*both.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (rows,) = cast(tuple[Tensor], ctx.saved_tensors)
        slope = gradients[0].reshape(len(rows), -1).contiguous()
        out = torch.empty_like(rows)
        fused_kernels.gate_backward(torch_team(), raw(slope), raw(rows), raw(out))
        return out.view(*gradients[0].shape[:-1], -1)


class _PartedHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        weight: Tensor,
        epsilon: float,
        cosine: Tensor,
        sine: Tensor,
        heads: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _, size = projected.shape
        asked, held = heads
        whole = projected.detach().contiguous()
        rows, factors = _halves(whole).flatten(0, 1), _halves(_own(weight))
        turn, tilt = cosine.contiguous().flatten(0, 1), sine.contiguous().flatten(0, 1)
        made: list[Tensor] = []
        scales: list[Tensor] = []
        for first, count in ((0, asked), (asked, held)):
            out = whole.new_empty(batch, count, length, size)
            scale = factors.new_empty(len(rows), count)
            if count:
                fused_kernels.turn_heads(
                    torch_team(),
                    raw(rows),
                    first,
                    raw(factors[first : first + count]),
                    epsilon,
                    *map(raw, (turn, tilt, _halves(out), scale)),
                )
            made.append(out)
            scales.append(scale)
        values = whole[:, :, asked + held :].transpose(1, 2).contiguous()
        ctx.save_for_backward(rows, factors, turn, tilt, *scales)
        return made[0], made[1], values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        saved = cast(tuple[Tensor, ...], ctx.saved_tensors)
        rows, factors, turn, tilt = saved[:4]
        out = torch.empty_like(rows)
        found: list[Tensor] = []
        first = 0
        for slope, scale in zip(gradients[:2], saved[4:], strict=True):
            last = first + slope.shape[1]
            if last > first:
                own = factors.new_zeros(_blocks(len(rows)), *factors[first:last].shape)
                fused_kernels.turn_heads_backward(
                    torch_team(),
                    raw(_halves(slope.contiguous())),
                    raw(rows),
                    first,
                    *map(raw, (factors[first:last], turn, tilt, scale, out, own)),
                )
                found.append(own.sum(0))
            first = last
        batch, _, length, size = gradients[2].shape
        whole = out.view(batch, length, -1, size)
        whole[:, :, first:] = gradients[2].transpose(1, 2)
        return whole, torch.cat(found).view(-1, size), None, None, None, None


def _own(weight: Tensor) -> Tensor:
    """A copy: memory that NumPy has seen cannot be given back, as sharded parameters are."""
    return weight.detach().clone(memory_format=torch.contiguous_format)


def _halves(heads: Tensor) -> Tensor:
    """(…, D) → (…, 2, D / 2)."""
    return heads.view(*heads.shape[:-1], 2, heads.shape[-1] // 2)
