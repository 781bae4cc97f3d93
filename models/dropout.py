"""Dropout whose numbers are a function of a seed and a place.

    y = x · m / (1 − p)        m = 0 with probability p, else 1; p in steps of 1/256

A mask is a window of one long random sequence, and seed and place decide where it begins: the
sequence is made once, and dropping costs one product. (Torch's own dropout draws every number anew,
which on a CPU takes longer than all else between two matrix products.) The same seed, place and
shape give the same mask, so a continued run and a block that is computed again for its gradient
(gradient checkpointing) meet the masks of before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from index.errors import ConfigError

_STEPS = 256
_LEAST = 1 << 22
# Windows begin at multiples of this many numbers: aligned memory is read faster.
_GRAIN = 64


@dataclass(frozen=True, slots=True)
class Dropout:
    """`probability` in [0, 1), rounded to 1/256; `seed`: any non-negative integers."""

    probability: float
    seed: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not 0 <= self.probability < 1:
            raise ConfigError(f"dropout {self.probability} is not in [0, 1)")

    def __call__(self, state: Tensor, place: int) -> Tensor:
        """`state` of any shape with some of its values dropped; `place`: where in the model."""
        factors = self._mask(state, place)
        return state if factors is None else state * factors

    def added(self, state: Tensor, branch: Tensor, place: int) -> Tensor:
        """`state` + self(`branch`, `place`), both of one shape, in one pass over memory."""
        factors = self._mask(branch, place)
        return state + branch if factors is None else torch.addcmul(state, branch, factors)

    def _mask(self, state: Tensor, place: int) -> Tensor | None:
        """Factors of `state`'s shape; None where nothing is dropped."""
        dropped = round(self.probability * _STEPS)
        if not dropped or not state.numel():
            return None
        length = max(_LEAST, 1 << (2 * state.numel() - 1).bit_length())
        factors = _factors(dropped, length, state.dtype, state.device)
        random = np.random.default_rng(np.random.SeedSequence([*self.seed, place]))
        begin = _GRAIN * int(random.integers((length - state.numel()) // _GRAIN + 1))
        return factors[begin : begin + state.numel()].view(state.shape)


@lru_cache(maxsize=8)
def _factors(dropped: int, length: int, kind: torch.dtype, device: torch.device) -> Tensor:
    """The sequence: 0 with probability dropped/256, else what keeps the mean. (length,)"""
    drawn = np.random.default_rng([dropped, length]).bytes(length)
    # A bytearray is writable, which torch asks of what it wraps.
    kept = torch.frombuffer(bytearray(drawn), dtype=torch.uint8) >= dropped
    return kept.to(kind).mul_(_STEPS / (_STEPS - dropped)).to(device)
