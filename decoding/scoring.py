"""What a search may ask of the scoring rule: prompts that fit, and their priors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Prompt
from index.errors import ConfigError
from index.sid import SidLayout

MAX_BEAM_WIDTH = 1 << 20


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


def check_search(layout: SidLayout, other: SidLayout, beam_width: int) -> None:
    """Raises ConfigError for a beam that no engine holds, or a trie (of layout `other`) whose SIDs
    the weights (of `layout`) do not decode."""
    if not 1 <= beam_width <= MAX_BEAM_WIDTH or int(beam_width) != beam_width:
        raise ConfigError(f"beam_width is {beam_width}, it must be 1 to {MAX_BEAM_WIDTH}")
    if other != layout:
        raise ConfigError(
            f"the trie has {other.level_sizes} codes per level, the weights decode "
            f"{layout.level_sizes}; search a trie of their own codec"
        )


def check_prompt(prompt: Prompt, level_sizes: Sequence[int], vocabulary: int, longest: int) -> None:
    """Raises ConfigError for a prompt that the model cannot read."""
    token_ids = prompt.token_ids
    if not np.issubdtype(token_ids.dtype, np.integer):
        raise ConfigError(f"prompt token ids are integers, got {token_ids.dtype}")
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
    # As large a number as float32 takes: beyond it a float64 prior would become infinite.
    largest = np.finfo(np.float32).max
    if not all((np.abs(prior) <= largest).all() for prior in prompt.level_prior):
        raise ConfigError("level priors must be finite; exclude SIDs by a filter")
