"""Training examples as arrays: a prompt with weighted target SIDs, or with a text to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ExampleSet:
    """N examples.

    prompts: N arrays of token ids. target_codes int32 (N, T, L) and target_weights float32 (N, T)
    (rows sum to 1; all zero for a text example). texts: N arrays, the tokens to write after the
    prompt (empty for a SID example). embeddings float32 (N, d): query vectors for the codebook
    prior (zero where the example has none).
    """

    prompts: Sequence[Sequence[int]]
    target_codes: NDArray[np.int32]
    target_weights: FloatArray
    texts: Sequence[Sequence[int]]
    embeddings: FloatArray

    def __len__(self) -> int:
        return len(self.prompts)

    def longest(self, path_tokens: int) -> int:
        """Tokens of the longest example, `path_tokens` for the paths of a SID example."""
        return max(
            len(prompt) + max(len(text) - 1, path_tokens)
            for prompt, text in zip(self.prompts, self.texts, strict=True)
        )


def written(
    prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], levels: int, dimension: int
) -> ExampleSet:
    """Text examples; `texts` end with the end token. `dimension`: of query vectors."""
    return ExampleSet(
        prompts,
        np.zeros((len(prompts), 1, levels), np.int32),
        np.zeros((len(prompts), 1), np.float32),
        texts,
        np.zeros((len(prompts), dimension), np.float32),
    )


def join(parts: Sequence[ExampleSet]) -> ExampleSet:
    """One set of several; narrower target lists are padded with weight 0."""
    width = max(part.target_weights.shape[1] for part in parts)
    codes = [
        np.pad(part.target_codes, ((0, 0), (0, width - part.target_codes.shape[1]), (0, 0)))
        for part in parts
    ]
    weights = [
        np.pad(part.target_weights, ((0, 0), (0, width - part.target_weights.shape[1])))
        for part in parts
    ]
    return ExampleSet(
        [prompt for part in parts for prompt in part.prompts],
        np.concatenate(codes),
        np.concatenate(weights),
        [text for part in parts for text in part.texts],
        np.concatenate([part.embeddings for part in parts]),
    )
