"""Self-distillation's losses together with their gradients by the logits.

The formulas are those of `models.training.losses`, which says them one by one and is what this is
tested against. Here the terms of one pass share log p and p, and a gradient is written down instead
of being found by autograd, which would walk over as many tables (positions × codes) twice more:

    by log p    CE: −y/n     focal: −(w/n)·y·(1−p)^(γ−1)·[(1−p) − γ·p·log p]     α·KL, τ = 1: −α·t/m
    by z        a − p·Σa for a gradient a by log p            α·KL, any τ: α·τ·(softmax(z/τ) − t)/m
    R-Drop      ½[q − p + q·(log q − log p − KL(q ‖ p))]/n, by the logits of q; p is held

n positions, m of them taught. All is single precision at least.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Distribution(NamedTuple):
    """Of logits (n, K): log p and p."""

    log_p: Tensor
    p: Tensor


class Taught(NamedTuple):
    """What the teacher says at a level's n positions: t (n, K), rows of 0 where it is silent;
    `entropy` the scalar Σ t·log t; `spoken` how many positions it speaks at (m)."""

    p: Tensor
    entropy: Tensor
    spoken: int


class Fit(NamedTuple):
    """A level's terms of one pass: scalars, unweighted, and the gradient of ce + α·kl by the
    logits (n, K)."""

    ce: Tensor
    kl: Tensor
    slope: Tensor


def distribution(logits: Tensor, temperature: float = 1.0) -> Distribution:
    """softmax(logits / τ), without a graph."""
    exact = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    log_p = torch.log_softmax(exact if temperature == 1 else exact / temperature, dim=-1)
    return Distribution(log_p, log_p.exp())


def taught(logits: Tensor, points: Tensor, positions: int, temperature: float) -> Taught:
    """The teacher's logits (m, K) at `points` (m,) of `positions`."""
    log_t, t = distribution(logits, temperature)
    everywhere = t.new_zeros(positions, t.shape[1]).index_copy_(0, points, t)
    return Taught(everywhere, (t * log_t).sum(), len(points))


def fit(
    logits: Tensor,
    own: Distribution,
    target: Tensor,
    teacher: Taught | None,
    *,
    focal: tuple[float, float] | None,
    kl_weight: float,
    temperature: float,
) -> Fit:
    """Cross-entropy, or focal loss of (w, γ), and KL; `own`: the logits' distribution at τ = 1."""
    log_p, p = own
    weight, gamma = focal or (1.0, 0.0)
    by_log_p = target.to(p.dtype) * (-weight / max(len(p), 1))
    if gamma == 0:
        ce = (by_log_p * log_p).sum()
    else:
        missing = 1 - p
        by_log_p *= missing.pow(gamma - 1)
        ce = (by_log_p * log_p).mul_(missing).sum()
        by_log_p *= missing.addcmul_(p, log_p, value=-gamma)
    kl = ce.new_zeros(())
    if teacher is None or not teacher.spoken:
        return Fit(ce, kl, _by_logits(by_log_p, p))
    share = kl_weight / teacher.spoken
    if temperature == 1:
        kl = (teacher.entropy - (teacher.p * log_p).sum()) / teacher.spoken
        return Fit(ce, kl, _by_logits(by_log_p.add_(teacher.p, alpha=-share), p))
    log_w, warm = distribution(logits, temperature)
    kl = temperature**2 * (teacher.entropy - (teacher.p * log_w).sum()) / teacher.spoken
    speaks = teacher.p.sum(dim=-1, keepdim=True)
    pull = (speaks * warm - teacher.p) * (share * temperature)
    return Fit(ce, kl, _by_logits(by_log_p, p) + pull)


def apart(first: Distribution, second: Distribution) -> tuple[Tensor, Tensor]:
    """R-Drop's term of two passes, a scalar, and its gradient by the second's logits (n, K)."""
    log_p, p = first
    log_q, q = second
    count = max(len(q), 1)
    further, more = log_q - log_p, q - p
    value = 0.5 * (more * further).sum() / count
    divergence = (q * further).sum(dim=-1, keepdim=True)
    return value, more.addcmul_(q, further.sub_(divergence)).mul_(0.5 / count)


def _by_logits(by_log_p: Tensor, p: Tensor) -> Tensor:
    return torch.addcmul(by_log_p, p, by_log_p.sum(dim=-1, keepdim=True), value=-1)
