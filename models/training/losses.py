"""Losses of supervised fine-tuning and self-distillation: pure functions of tensors.

    SID positions    L_l = −Σ_k y_k · log softmax(h·W_lᵀ + β·⟨e, C_l⟩)_k     over level l's codebook
    text positions   CE over the whole vocabulary
    focal            −w · Σ_k y_k · (1 − p_k)^γ · log p_k
    distillation     τ² · KL(softmax(z_T/τ) ‖ softmax(z_S/τ)), the teacher z_T without gradient
    R-Drop           ½ · [KL(P₁‖P₂) + KL(P₂‖P₁)] of two passes with independent dropout

All are means over positions; formulas and defaults are OneSearch-V2's. y is a distribution over the
level's codes (one-hot for a single target). The level slice, the prior and the normalisation are
the scoring rule of the engines (DESIGN §4), so training and serving see the same probabilities.
"""

from __future__ import annotations

import torch
from torch.nn import functional

FOCAL_WEIGHT = 2.0
FOCAL_GAMMA = 3.0


def soft_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of −Σ_k target·log softmax(logits). Shapes (n, K); returns a scalar (0 for n = 0)."""
    if len(logits) == 0:
        return logits.sum()
    return -(target * functional.log_softmax(_exact(logits), dim=-1)).sum(dim=-1).mean()


def focal_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    weight: float = FOCAL_WEIGHT,
    gamma: float = FOCAL_GAMMA,
) -> torch.Tensor:
    """Cross-entropy that looks away from what is known already. Shapes (n, K); a scalar.

    With γ = 0 and weight 1 it is `soft_cross_entropy`.
    """
    if len(logits) == 0:
        return logits.sum()
    log_p = functional.log_softmax(_exact(logits), dim=-1)
    missing = 1 - log_p.exp()
    return -weight * (target * log_p).mul(missing.pow(gamma)).sum(dim=-1).mean()


def forward_kl(
    teacher: torch.Tensor, student: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """KL(teacher ‖ student) of logits (n, K), times τ²; a scalar. The teacher gets no gradient."""
    if len(student) == 0:
        return student.sum()
    log_t = functional.log_softmax(_exact(teacher.detach()) / temperature, dim=-1)
    log_s = functional.log_softmax(_exact(student) / temperature, dim=-1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(dim=-1).mean()


def symmetric_kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """R-Drop's term of two passes' logits (n, K); a scalar. Both get the gradient."""
    if len(first) == 0:
        return first.sum() + second.sum()
    log_p = functional.log_softmax(_exact(first), dim=-1)
    log_q = functional.log_softmax(_exact(second), dim=-1)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1).mean()


def level_loss(
    hidden: torch.Tensor,
    output_slice: torch.Tensor,
    target: torch.Tensor,
    prior: torch.Tensor | None,
) -> torch.Tensor:
    """Level-slice cross-entropy.

    hidden (n, d), output_slice (K, d): the level's rows of the output matrix, target (n, K),
    prior (n, K) or None.
    """
    logits = functional.linear(hidden, output_slice)
    if prior is not None:
        logits = logits + prior
    return soft_cross_entropy(logits, target)


def text_loss(
    hidden: torch.Tensor, output_matrix: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy over the vocabulary at text positions. hidden (n, d), target int64 (n,)."""
    if len(hidden) == 0:
        return hidden.sum()
    return functional.cross_entropy(_exact(functional.linear(hidden, output_matrix)), target)


def _exact(logits: torch.Tensor) -> torch.Tensor:
    """In single precision at least: sums over a codebook lose too much in half."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
