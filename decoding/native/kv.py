"""Keys and values. A prompt's context is stored once and shared by all its beams; generated
positions are stored as they were computed, and beams find theirs by row number.

Reordering beams therefore moves a few integers a row, never keys or values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ContextKV:
    """Prompts of a wave, padded on the right to T.

    keys[layer] (Q·key_heads, head_dim, T); values[layer] (Q·key_heads, T, head_dim); lengths int64
    (Q,); bias (Q, 1, 1, T): 0 on the prompt, very small on padding, None where nothing is padded.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor
    bias: Tensor | None


@dataclass(slots=True, eq=False)
class BeamKV:
    """Generated positions of all rows of a wave.

    `steps[s][layer]` = keys and values (rows of step s, key_heads, head_dim). `ancestry[s]` int64
    (rows,): the row of step s that each present row descends from.
    """

    steps: list[list[tuple[Tensor, Tensor]]] = field(
        default_factory=list[list[tuple[Tensor, Tensor]]]
    )
    ancestry: list[Tensor] = field(default_factory=list[Tensor])

    def begin(self, parents: Tensor) -> None:
        """The next generated position. `parents` int64 (rows,): row of the step before (of the
        prompts, at first) that each new row continues."""
        self.ancestry = [rows[parents] for rows in self.ancestry]
        self.ancestry.append(torch.arange(len(parents), device=parents.device))
        self.steps.append([])

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Keys and values of the present position, of the next layer."""
        self.steps[-1].append((keys, values))
