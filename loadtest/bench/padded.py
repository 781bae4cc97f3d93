"""Peer: the dense + CSR padded scheme, STATIC's published idea (arXiv 2602.22647) in own code.

The first two levels are dense tables over all codes; below them, transitions are rows of a sparse
matrix, (code, next state) pairs. A step reads as many pairs for every beam as the level's busiest
node has children and masks the surplus, so that shapes never change: made for accelerators, run
here by torch on the CPU. As published it keeps illegal rows when there are fewer legal ones than
beams, and changes by building anew. Kinder than published: levels have code spaces of their own,
the log softmax covers the level only, and the second level keeps enough codes per beam to be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.sid import SidLayout

NAME = "STATIC-style, a space per level"
PUBLISHED_NAME = "STATIC-style, one space as published"
DENSE_LEVELS = 2
_WORST = float("-inf")

_IMPOSSIBLE = -1e4

LogitsOf = Callable[[int, Tensor | None], Tensor]


def one_space(layout: SidLayout) -> SidLayout:
    """All levels as wide as the widest."""
    return SidLayout((max(layout.level_sizes),) * layout.levels)


@dataclass(frozen=True, slots=True, eq=False)
class PaddedScheme:
    """`start_mask` bool (K_0,); `dense_states` int32 (K_0, K_1), -1 where no SID leads; `starts`
    int32 (states + 1,); `pairs` int32 (transitions + padding, 2); `branching`: the largest number
    of children at each level. States: nodes of level 1, then of level 2, …; leaves need none."""

    layout: SidLayout
    start_mask: Tensor
    dense_states: Tensor
    starts: Tensor
    pairs: Tensor
    branching: tuple[int, ...]

    @classmethod
    def build(cls, layout: SidLayout, codes: NDArray[np.int32]) -> PaddedScheme:
        """From the codes of sorted distinct SIDs, int32 (N, L), N ≥ 1, L > 2."""
        sizes, levels = layout.level_sizes, layout.levels
        begins = np.zeros((levels, len(codes)), dtype=np.bool_)
        begins[:, 0] = True
        changed = np.zeros(len(codes) - 1, dtype=np.bool_)
        for level in range(levels):
            changed |= codes[1:, level] != codes[:-1, level]
            begins[level, 1:] = changed
        state = np.empty((levels, len(codes)), dtype=np.int32)
        first_state = 0
        for level in range(1, levels - 1):
            np.cumsum(begins[level], out=state[level])
            state[level] += first_state - 1
            first_state = int(state[level, -1]) + 1
        start_mask = np.zeros(sizes[0], dtype=np.bool_)
        start_mask[codes[:, 0]] = True
        dense_states = np.full(sizes[:2], -1, dtype=np.int32)
        dense_states[codes[:, 0], codes[:, 1]] = state[1]
        counts = np.zeros(first_state, dtype=np.int64)
        parts: list[NDArray[np.int32]] = []
        branching = [int(start_mask.sum()), int((dense_states >= 0).sum(1).max())]
        for level in range(DENSE_LEVELS, levels):
            at = begins[level]
            parents = state[level - 1, at]
            found = np.bincount(parents, minlength=first_state)
            branching.append(int(found.max()))
            counts += found
            following = state[level, at] if level < levels - 1 else np.zeros_like(parents)
            parts.append(np.stack((codes[at, level], following), axis=1))
        # A row that starts near the end reads past it.
        parts.append(np.zeros((max(branching), 2), dtype=np.int32))
        starts = np.zeros(first_state + 1, dtype=np.int32)
        np.cumsum(counts, out=starts[1:])
        return cls(
            layout,
            torch.from_numpy(start_mask),
            torch.from_numpy(dense_states),
            torch.from_numpy(starts),
            torch.from_numpy(np.concatenate(parts)),
            tuple(branching),
        )

    @property
    def n_bytes(self) -> int:
        """Bytes of all tables."""
        arrays = (self.start_mask, self.dense_states, self.starts, self.pairs)
        return sum(array.nbytes for array in arrays)

    @torch.inference_mode()
    def search(self, model: LogitsOf, width: int) -> tuple[Tensor, Tensor]:
        """Beam search of one query → codes int64 (width, L) and scores (width,), illegal rows at
        -inf. `model` gives the logits of a level from the last code of every row."""
        log_probabilities = torch.log_softmax(model(0, None), dim=-1)[0]
        masked = log_probabilities.masked_fill(~self.start_mask, _WORST)
        scores, codes = torch.topk(masked, min(width, len(masked)))
        history, state = codes[:, None], codes
        for level in range(1, self.layout.levels):
            log_probabilities = torch.log_softmax(model(level, codes), dim=-1)
            step = self._dense_step if level < DENSE_LEVELS else self._sparse_step
            candidate, code, following = step(log_probabilities, state, level, width)
            total = (scores[:, None] + candidate).flatten()
            scores, chosen = torch.topk(total, min(width, len(total)))
            parents = torch.div(chosen, candidate.shape[1], rounding_mode="floor")
            codes, state = code.flatten()[chosen], following.flatten()[chosen]
            history = torch.cat((history[parents], codes[:, None]), dim=1)
        return history, scores

    def spread(self, logits: Tensor) -> Tensor:
        """Logits (rows, K) of a level over the widest space, all else impossible."""
        whole = torch.full((len(logits), max(self.layout.level_sizes)), _IMPOSSIBLE)
        whole[:, : logits.shape[1]] = logits
        return whole

    def _dense_step(
        self, log_probabilities: Tensor, state: Tensor, level: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        following = self.dense_states[state]
        masked = log_probabilities.masked_fill(following < 0, _WORST)
        candidate, code = torch.topk(masked, min(width, masked.shape[1]), dim=-1)
        # Rows without a path go on from state 0, at -inf.
        return candidate, code, following.gather(1, code).clamp_min(0).long()

    def _sparse_step(
        self, log_probabilities: Tensor, state: Tensor, level: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        first = self.starts[state]
        counts = self.starts[state + 1] - first
        offsets = torch.arange(self.branching[level], dtype=torch.int32)
        pairs = self.pairs[first[:, None] + offsets]
        code = pairs[..., 0].long()
        candidate = log_probabilities.gather(1, code.clamp_max(log_probabilities.shape[1] - 1))
        candidate = candidate.masked_fill(offsets >= counts[:, None], _WORST)
        return candidate, code, pairs[..., 1].long()
