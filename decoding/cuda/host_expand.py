"""Expansion on the host behind the device's interface: one wait a level, for whatever the device's
own expansion does not know, such as added SIDs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from decoding.beam import Beam


class HostExpander:
    """Grows the beams of one wave, which hold the results. The outputs are those of
    `decoding.cuda.trace.Selection`, (Q, W); queries beyond the beams have no rows."""

    def __init__(
        self, beams: Sequence[Beam], queries: int, width: int, device: torch.device
    ) -> None:
        self._beams = beams
        size = (queries, width)
        self.nodes = torch.empty(size, dtype=torch.int32, device=device)
        self.parents, self.codes, self.branching = (torch.empty_like(self.nodes) for _ in range(3))
        self.scores = torch.empty(size, dtype=torch.float32, device=device)
        self.level_scores = torch.empty_like(self.scores)

    def expand(
        self,
        level: int,
        nodes: Tensor,
        scores: Tensor,
        logits: Tensor,
        prior: Tensor | None,
        filter_table: Tensor,
        widths: Tensor,
    ) -> HostExpander:
        """`logits` float32 (Q, R, K) and `prior` (Q, K) of the level that the beams grow to. The
        rest is the beams' own business."""
        # The wait for the device.
        all_logits = logits.float().cpu().numpy()
        priors = None if prior is None else prior.cpu().numpy()
        size = tuple(self.nodes.shape)
        nodes_out = np.full(size, -1, dtype=np.int32)
        parents, codes, branching = (np.zeros(size, dtype=np.int32) for _ in range(3))
        totals = np.full(size, -np.inf, dtype=np.float32)
        level_scores = np.zeros(size, dtype=np.float32)
        for row, beam in enumerate(self._beams):
            if not len(beam):
                continue
            own = None if priors is None else priors[row]
            step = beam.grow(np.ascontiguousarray(all_logits[row, : len(beam)]), own)
            count = len(beam)
            # The trace only asks whether there is a node; added ones may lie anywhere.
            nodes_out[row, :count] = 0
            parents[row, :count], codes[row, :count] = step.parents, step.codes
            totals[row, :count] = beam.scores
            level_scores[row, :count] = step.level_scores
            branching[row, :count] = step.branching
        for target, source in (
            (self.nodes, nodes_out),
            (self.parents, parents),
            (self.codes, codes),
            (self.scores, totals),
            (self.level_scores, level_scores),
            (self.branching, branching),
        ):
            target.copy_(torch.from_numpy(source))
        return self
