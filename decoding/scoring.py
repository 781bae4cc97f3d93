"""What a search may ask of the scoring rule: prompts that fit, and their priors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Prompt
from index.errors import ConfigError


def stacked_priors(
    prompts: Sequence[Prompt], level_sizes: Sequence[int]
) -> tuple[NDArray[np.float32], ...] | None:
    """Per level float32 (prompts, K_l), zero for prompts without a prior; None if none has one."""
    if all(prompt.level_prior is None for prompt in prompts):
        return None
    stacked: list[NDArray[np.float32]] = [
        np.zeros((len(prompts), size), dtype=np.float32) for size in level_sizes
    ]
    for row, prompt in enumerate(prompts):
        for level, prior in enumerate(prompt.level_prior or ()):
            stacked[level][row] = prior
    return tuple(stacked)


def check_prompt(prompt: Prompt, level_sizes: Sequence[int], vocabulary: int, longest: int) -> None:
    """Raises ConfigError for a prompt that the model cannot read."""
    token_ids = prompt.token_ids
    if token_ids.ndim != 1 or not 1 <= len(token_ids) <= longest:
        raise ConfigError(
            f"a prompt has 1 to {longest} token ids in one dimension, got {token_ids.shape}"
        )
    if token_ids.min() < 0 or token_ids.max() >= vocabulary:
        raise ConfigError(
            f"prompt token ids reach from {token_ids.min()} to {token_ids.max()}, "
            f"the vocabulary has {vocabulary}"
        )
    if prompt.level_prior is None:
        return
    shapes = [prior.shape for prior in prompt.level_prior]
    if shapes != [(size,) for size in level_sizes]:
        raise ConfigError(f"level priors have shapes {shapes}, the levels have {level_sizes} codes")
    if not all(np.isfinite(prior).all() for prior in prompt.level_prior):
        raise ConfigError("level priors must be finite; exclude SIDs by a filter")
