"""Losses of supervised fine-tuning: pure functions of tensors.

    SID positions    L_l = −Σ_k y_k · log softmax(h·W_lᵀ + β·⟨e, C_l⟩)_k     over level l's codebook
    text positions   CE over the whole vocabulary

y is a distribution over the level's codes (one-hot for a single target). The level slice, the
prior and the normalisation are the scoring rule of the engines (DESIGN §4), so training and
serving see the same probabilities.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def soft_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of −Σ_k target·log softmax(logits). Shapes (n, K); returns a scalar (0 for n = 0)."""
    if len(logits) == 0:
        return logits.sum()
    return -(target * functional.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


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
    return functional.cross_entropy(functional.linear(hidden, output_matrix).float(), target)
