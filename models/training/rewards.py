"""What a rollout is worth: rewards of items and of SID prefixes (OneSearch-V2).

    R_item = R_order/click + R_ctr + R_relevance
             order 4, click 3, else 0;  calibrated CTR in [0, 1];  relevance 3, 2, 1, 0
    w      = 2 at levels 1 and 2, 1 at the levels between, 0 at the last      (L = 5: 2 2 1 1 0)
    R_l    = max_t Σ_{k≤l} [o_k = t_k]·w_k          over the clicked and ordered SIDs t of a prompt
    ΔR_l   = R_l − R_{l−1}
    M_l    = max_t Σ_{k≤l} [o_k = t_k]              without weights: the gate's count

Sources disagree on whether an order is worth 4 and a click 3 or the other way round: here an order
is worth more. A position counts when it matches even behind a mismatch, as in the published code;
`strict` counts only up to the first mismatch. R_l and M_l may have their best match at different
targets.

Shapes: P prompts, G rollouts of each, L levels, T targets of each (padded).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

ORDER_REWARD = 4.0
CLICK_REWARD = 3.0
CTR_PRIOR_COUNT = 10.0
_HEAVY_LEVELS = 2
_HEAVY_WEIGHT = 2.0
_LIGHT_WEIGHT = 1.0


class PrefixRewards(NamedTuple):
    """`marginal` float32 (P, G, L): ΔR; `matches` float32 (P, G, L): M."""

    marginal: torch.Tensor
    matches: torch.Tensor


def level_weights(levels: int) -> torch.Tensor:
    """w, float32 (L,)."""
    weights = torch.full((levels,), _LIGHT_WEIGHT)
    weights[:_HEAVY_LEVELS] = _HEAVY_WEIGHT
    weights[-1] = 0.0
    return weights


def calibrated_ctr(
    shown: torch.Tensor, clicked: torch.Tensor, ordered: torch.Tensor
) -> torch.Tensor:
    """log(c + 10) / log((s + 10)(c + 10)(o + 10)), clipped to [0, 1]; counts of any shape ≥ 0."""
    prior = CTR_PRIOR_COUNT
    top = torch.log(clicked + prior)
    return (top / (torch.log(shown + prior) + top + torch.log(ordered + prior))).clamp(0.0, 1.0)


def item_rewards(
    ordered: torch.Tensor, clicked: torch.Tensor, ctr: torch.Tensor, relevance: torch.Tensor
) -> torch.Tensor:
    """R_item of any shape. `ordered`, `clicked` bool; `ctr` is clipped to [0, 1]; `relevance` in
    0 … 3."""
    behaviour = ORDER_REWARD * ordered.float() + CLICK_REWARD * (clicked & ~ordered).float()
    return behaviour + ctr.clamp(0.0, 1.0) + relevance


def prefix_rewards(
    rollouts: torch.Tensor, targets: torch.Tensor, known: torch.Tensor, *, strict: bool = False
) -> PrefixRewards:
    """Rewards of every prefix of every rollout.

    rollouts int64 (P, G, L), targets int64 (P, T, L), known bool (P, T): which targets are there.
    A prompt without a target has zero rewards and matches.
    """
    same = (rollouts[:, :, None, :] == targets[:, None, :, :]) & known[:, None, :, None]
    matched = same.to(torch.float32)  # (P, G, T, L)
    if strict:
        matched = matched.cumprod(dim=-1)
    weights = level_weights(rollouts.shape[-1]).to(rollouts.device)
    if not targets.shape[1]:
        nothing = torch.zeros(rollouts.shape, dtype=torch.float32, device=rollouts.device)
        return PrefixRewards(nothing, nothing)
    reward = (matched * weights).cumsum(dim=-1).amax(dim=2)
    matches = matched.cumsum(dim=-1).amax(dim=2)
    marginal = reward.diff(dim=-1, prepend=torch.zeros_like(reward[..., :1]))
    return PrefixRewards(marginal, matches)
