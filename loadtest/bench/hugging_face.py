"""Peer: Hugging Face `generate` with beams, its KV cache and a prefix function.

`generate` scores over the whole vocabulary. A small processor before the mask subtracts the
level's log-sum-exp, so that scores are those of our rule and answers can be compared; it touches
one level's columns and costs a small part of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.trie import Trie
from loadtest.bench.prefix_mask import AllowedTokens

NAME = "Hugging Face generate"


class HuggingFace:
    """One checkpoint as `AutoModelForCausalLM`, and one catalogue."""

    def __init__(
        self, directory: Path, dtype: torch.dtype, trie: Trie, sid_offset: Sequence[int]
    ) -> None:
        transformers: Any = import_module("transformers")
        self._processors: Any = import_module("transformers.generation.logits_process")
        transformers.utils.logging.disable_progress_bar()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        self._model.eval()
        self._trie, self._offsets = trie, tuple(sid_offset)

    @torch.inference_mode()
    def search(self, prompts: Tensor, width: int) -> NDArray[np.int64]:
        """Prompts int64 (Q, T) → codes int64 (Q, width, L), best first."""
        length, levels = prompts.shape[1], self._trie.layout.levels
        allowed = AllowedTokens(self._trie, self._offsets, length)
        sizes = self._trie.layout.level_sizes

        def by_level(token_ids: Tensor, scores: Tensor) -> Tensor:
            level = token_ids.shape[1] - length
            first = self._offsets[level]
            codes = scores[:, first : first + sizes[level]]
            codes -= codes.logsumexp(dim=-1, keepdim=True)
            return scores

        mask = self._processors.PrefixConstrainedLogitsProcessor(allowed, width)
        found = self._model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=levels,
            do_sample=False,
            length_penalty=0.0,
            pad_token_id=0,
            eos_token_id=None,
            logits_processor=self._processors.LogitsProcessorList([by_level, mask]),
        )
        codes = found[:, length:].numpy() - np.asarray(self._offsets)
        return codes.reshape(len(prompts), width, levels)
