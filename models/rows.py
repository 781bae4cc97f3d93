"""What a pass knows of its rows besides their tokens: rotation, mask, and which places are wanted.

Rows (B, T) hold packed examples, so positions and mask are theirs, not the model's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosine and sine of every position, float32 (B, T, head_dim / 2)."""

    cosine: Tensor
    sine: Tensor


class Points(NamedTuple):
    """The places of rows (B, T) whose final states are wanted, N of them.

    `places` int64 (B, P): in each row, filled up with 0. `kept` int64 (N,): which of the flattened
    B·P are no filling. `position` int64 (N,): theirs in the flattened rows.
    """

    places: Tensor
    kept: Tensor
    position: Tensor

    def to(self, device: torch.device) -> Points:
        return Points(*(one.to(device) for one in self))


class Frame(NamedTuple):
    """What a pass knows of its rows besides the states: rotation, and the attention mask as an
    additive term (B or 1, 1, T, T) of the computing type. Passes over the same rows share it."""

    rotation: Rotation
    bias: Tensor


def additive_mask(
    bias: Tensor | None, length: int, compute_type: torch.dtype, device: torch.device
) -> Tensor:
    """The attention mask as an additive term (B or 1, 1, T, T) of the computing type."""
    if bias is None:
        bias = torch.ones((1, 1, length, length), dtype=torch.bool, device=device).tril()
    if bias.dtype == torch.bool:
        blocked = torch.zeros(bias.shape, dtype=compute_type, device=device)
        # Half of the smallest number: no score can lift it, and no sum with it overflows.
        return blocked.masked_fill_(~bias, torch.finfo(compute_type).min / 2)
    return bias.to(compute_type)


def states_at(state: Tensor, places: Tensor) -> Tensor:
    """(B, T, d) → (B, P, d): the states at `places`."""
    batch, length, width = state.shape
    first = torch.arange(batch, device=places.device)[:, None] * length
    flat = state.reshape(-1, width).index_select(0, (places + first).flatten())
    return flat.view(batch, -1, width)


def rotation_at(rotation: Rotation, places: Tensor) -> Rotation:
    """The rotation of `places` (B, P)."""
    return Rotation(states_at(rotation.cosine, places), states_at(rotation.sine, places))


def bias_at(bias: Tensor, places: Tensor) -> Tensor:
    """(B or 1, 1, T, T) → (B, 1, P, T): what `places` (B, P) may see."""
    return states_at(bias[:, 0].expand(len(places), -1, -1), places)[:, None]
