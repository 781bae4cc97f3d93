"""Preference alignment on groups of rollouts: TPMA-GRPO and plain GRPO (OneSearch-V2).

    A_l     = (ΔR_l − mean_G) / (std_G + 1e-8)                     of each position, over the group
    g_1 = 1,  g_l = clamp(M_{l−1} / (l − 1), 0, 1)                 prefix gate, unweighted count
    A_final = A_l + w_item · (R_item − mean_G) / (std_G + 1e-8)
    TPMA    = −1/G Σ_i 1/L Σ_l g_l · r_l · A_final                 r = π / π_old, no clipping
    GRPO    = −1/G Σ_i 1/L Σ_l r_l · (R_item − mean_G) / (std_G + 1e-8)
    loss    = that + 0.1 · CE(first target) [+ β · KL(π ‖ π_reference)]

std is that of a sample (n − 1), as in the usual GRPO code; the paper does not say. With w_item = 0
the last position gets no signal at all, for its weight in ΔR is 0: the default is above 0. A group
whose rollouts are all worth the same has advantage 0 everywhere. log π is the level-slice
log-softmax, the scoring rule of the engines.

Shapes: P prompts, G rollouts, L levels. Losses are means over prompts.
"""

from __future__ import annotations

import torch

from models.training.rewards import PrefixRewards

ITEM_WEIGHT = 1.0
ANCHOR_WEIGHT = 0.1
_EPSILON = 1e-8


def group_normalised(values: torch.Tensor) -> torch.Tensor:
    """(v − mean) / (std + 1e-8) over dimension 1, the group, float32. Shape (P, G, …), G ≥ 2.

    In double precision: in single, the rounded mean of equal values differs from them by more than
    1e-8, and a group without any preference would get advantages of about 1.
    """
    exact = values.double()
    deviation = exact.std(dim=1, keepdim=True)
    return ((exact - exact.mean(dim=1, keepdim=True)) / (deviation + _EPSILON)).float()


def prefix_gate(matches: torch.Tensor) -> torch.Tensor:
    """g, float32 (P, G, L), from M of the same shape."""
    levels = matches.shape[-1]
    before = torch.arange(1, levels, dtype=matches.dtype, device=matches.device)
    later = (matches[..., :-1] / before).clamp(0.0, 1.0)
    return torch.cat([torch.ones_like(matches[..., :1]), later], dim=-1)


def tpma_advantages(
    prefix: PrefixRewards, items: torch.Tensor, *, item_weight: float = ITEM_WEIGHT
) -> torch.Tensor:
    """Gated advantages g·A_final, float32 (P, G, L). `items`: R_item, float32 (P, G)."""
    advantage = group_normalised(prefix.marginal)
    advantage = advantage + item_weight * group_normalised(items)[..., None]
    return prefix_gate(prefix.matches) * advantage


def grpo_advantages(items: torch.Tensor, levels: int) -> torch.Tensor:
    """One advantage for all positions of a rollout, float32 (P, G, L)."""
    return group_normalised(items)[..., None].expand(*items.shape, levels)


def policy_loss(
    log_probability: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor
) -> torch.Tensor:
    """−mean of r·A over prompts, rollouts and positions; a scalar.

    log_probability, old, advantages float32 (P, G, L): of each rollout's codes under the weights
    as they are, as they were when it was sampled (no gradient), and the (gated) advantages.
    """
    ratio = torch.exp(log_probability - old.detach())
    return -(ratio * advantages.detach()).mean()


def reference_kl(log_probability: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean of π_ref/π − log(π_ref/π) − 1 at the sampled codes: an estimate of KL(π ‖ π_ref) that
    is never negative. Shapes (P, G, L); a scalar."""
    difference = reference.detach() - log_probability
    return (torch.exp(difference) - difference - 1.0).mean()
