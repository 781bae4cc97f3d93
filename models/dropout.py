"""Dropout whose numbers are a function of a seed and a place.

    y = x · m / (1 − p)        m = 0 with probability p, else 1; p in steps of 1/256

No state: the same seed, place and shape give the same mask, so a continued run and a block that is
computed again for its gradient (gradient checkpointing) meet the masks of before. On the CPU one
byte of a counter-free generator decides about a number; torch's own dropout takes several times as
long there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from index.errors import ConfigError

_STEPS = 256


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
        dropped = round(self.probability * _STEPS)
        if not dropped:
            return state
        kept = self._bytes(state, place) >= dropped
        return state * kept.to(state.dtype).mul_(_STEPS / (_STEPS - dropped))

    def _bytes(self, state: Tensor, place: int) -> Tensor:
        """Random bytes of the state's shape, on its device."""
        sequence = np.random.SeedSequence([*self.seed, place])
        if state.device.type == "cpu":
            drawn = np.random.Generator(np.random.SFC64(sequence)).bytes(state.numel())
            # A bytearray is writable, which torch asks of what it wraps.
            return torch.frombuffer(bytearray(drawn), dtype=torch.uint8).view(state.shape)
        generator = torch.Generator(state.device)
        generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        drawn = torch.empty(state.shape, dtype=torch.uint8, device=state.device)
        return drawn.random_(generator=generator)
