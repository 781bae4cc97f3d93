"""Keys and values. A prompt's context is stored once and shared by all its beams; generated
positions are stored as they were computed, and beams find theirs by row number.

Reordering beams therefore moves a few integers a row, never keys or values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoding.native.numbers import Array, raw
from decoding.native.sizes import rounded
from decoding.weights import DecoderShape


@dataclass(frozen=True, slots=True, eq=False)
class ContextKV:
    """Prompts of a wave, padded on the right with zeros to T, one of the sizes of products.

    keys[layer] and values[layer] (Q·key_heads, T, head_dim); lengths int64 (Q,).
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: NDArray[np.int64]

    @classmethod
    def empty(
        cls, shape: DecoderShape, lengths: NDArray[np.int64], dtype: torch.dtype
    ) -> ContextKV:
        """Room for prompts of these lengths."""
        size = (len(lengths) * shape.key_heads, rounded(int(lengths.max())), shape.head_dim)
        # A padded value is multiplied by zero, so it has to be a number.
        make = torch.empty if int(lengths.min()) == size[1] else torch.zeros
        keys, values = (
            [make(size, dtype=dtype) for _ in range(shape.layers)] for _ in ("keys", "values")
        )
        return cls(keys, values, lengths)


class BeamKV:
    """Generated positions of all rows of a wave: at most `steps` of at most `rows` rows.

    keys[layer] and values[layer] (steps, rows, key_heads, head_dim), as the kernels read them.
    ancestry int64 (steps so far, present rows): the row of each step that a present row descends
    from.
    """

    def __init__(self, shape: DecoderShape, steps: int, rows: int, dtype: torch.dtype) -> None:
        size = (steps, rows, shape.key_heads, shape.head_dim)
        self.keys: list[Array] = []
        self.values: list[Array] = []
        for _ in range(shape.layers):
            self.keys.append(raw(torch.empty(size, dtype=dtype)))
            self.values.append(raw(torch.empty(size, dtype=dtype)))
        self.ancestry = np.zeros((0, rows), dtype=np.int64)

    @property
    def steps(self) -> int:
        """Positions generated so far."""
        return len(self.ancestry)

    def begin(self, parents: NDArray[np.int64]) -> None:
        """The next generated position. `parents` int64 (rows,): row of the step before (of the
        prompts, at first) that each new row continues."""
        rows = np.arange(len(parents), dtype=np.int64)
        # Before the first step there is no ancestor to follow.
        older = self.ancestry[:, parents] if self.steps else self.ancestry[:, : len(parents)]
        self.ancestry = np.concatenate((older, rows[None]))
