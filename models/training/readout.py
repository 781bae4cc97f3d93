"""From final states to the logits of every level: the scoring rule, as training computes it.

    z_l = h·W_lᵀ + β·⟨e, C_l⟩        at each prediction point of level l, over that level's codebook

The same sum that the engines normalise (DESIGN §4); every loss on SIDs reads these logits.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from index.codec import Codec
from models.tokenizer import Tokenizer
from models.training.examples import PackedBatch
from models.transformer import Qwen3


class Readout:
    """Reads one model's states under one codec. Holds the centroids on the model's device."""

    def __init__(
        self, tokenizer: Tokenizer, codec: Codec, prior_beta: float, device: torch.device
    ) -> None:
        self._sizes = codec.layout.level_sizes
        self._first = tokenizer.sid_offset[0]
        self._prior_beta = prior_beta
        self._centroids = [torch.tensor(level, device=device) for level in codec.centroids]

    def priors(self, batch: PackedBatch) -> list[torch.Tensor]:
        """Per level β·⟨e, C_l⟩ at the batch's points, float32 (n_l, K_l); none without a prior."""
        if self._prior_beta <= 0:
            return []
        return [
            (self._prior_beta * (batch.embeddings @ centroids.T).float())[targets.example]
            for targets, centroids in zip(batch.levels, self._centroids, strict=True)
        ]

    def level_logits(
        self,
        model: Qwen3,
        hidden: torch.Tensor,
        batch: PackedBatch,
        priors: list[torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Per level (n_l, K_l) at the batch's points of that level; `hidden` (N, d): states of its
        points. With a prior they are float32, else of the states' type. `priors`: the batch's,
        where they are known already."""
        priors = self.priors(batch) if priors is None else priors
        weight = model.lm_head.weight
        # One split for all levels: its gradient is put together once.
        rest = len(weight) - self._first - sum(self._sizes)
        blocks = weight.split([self._first, *self._sizes, rest])[1:-1]
        found: list[torch.Tensor] = []
        for level, (targets, block) in enumerate(zip(batch.levels, blocks, strict=True)):
            logits = functional.linear(batch.states(hidden, targets.position), block)
            found.append(logits + priors[level] if priors else logits)
        return found
