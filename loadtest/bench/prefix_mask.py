"""Peer: constrained beam search as Hugging Face's `generate` does it, one step after another.

Log softmax over the whole vocabulary for every row, `PrefixConstrainedLogitsProcessor` (the class
itself) with a `prefix_allowed_tokens_fn`, then the best of rows × vocabulary. The function asks the
array trie, which is quicker than the nested dicts in common use. Logits of other levels' tokens are
so low that the softmax over the vocabulary equals the one over the level, which makes answers
comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from index.trie import Trie
from loadtest.bench.padded import LogitsOf

NAME = "Hugging Face prefix mask"
TEXT_TOKENS = 8192
_IMPOSSIBLE = -1e4
_DEAD = -1e9


def why_missing() -> str | None:
    """Why it cannot run here, None when it can."""
    try:
        import_module("transformers")
    except ImportError as error:
        return f"not installed: {error}"
    return None


class AllowedTokens:
    """`prefix_allowed_tokens_fn` over a trie: token ids of codes that continue a prefix."""

    def __init__(self, trie: Trie, sid_offset: Sequence[int], prompt_length: int) -> None:
        self._trie = trie
        self._offsets = list(sid_offset)
        self._prompt_length = prompt_length

    def __call__(self, batch_id: int, token_ids: Tensor) -> list[int]:
        trie = self._trie
        first, end = 0, trie.node_counts[0]
        for level, token in enumerate(token_ids[self._prompt_length :].tolist()):
            codes = trie.codes[level][first:end]
            node = first + int(np.searchsorted(codes, token - self._offsets[level]))
            # A row that has left the trie may say anything; its score keeps it out.
            node = min(node, end - 1)
            run = trie.starts[level].at(np.array([node, node + 1]))
            first, end = int(run[0]), int(run[1])
        level = len(token_ids) - self._prompt_length
        return (trie.codes[level][first:end].astype(np.int64) + self._offsets[level]).tolist()


class PrefixMask:
    """One catalogue; the vocabulary is text tokens, then the codes of each level."""

    def __init__(self, trie: Trie) -> None:
        sizes = trie.layout.level_sizes
        self.offsets = [TEXT_TOKENS + sum(sizes[:level]) for level in range(len(sizes))]
        self.vocabulary = TEXT_TOKENS + sum(sizes)
        self._allowed = AllowedTokens(trie, self.offsets, prompt_length=1)

    @torch.inference_mode()
    def search(self, model: LogitsOf, width: int) -> tuple[Tensor, Tensor]:
        """Beam search of one query → codes int64 (width, L) and scores (width,). `model` gives
        logits (rows, vocabulary) from the last code of every row."""
        processors: Any = import_module("transformers.generation.logits_process")
        mask = processors.PrefixConstrainedLogitsProcessor(self._allowed, width)
        token_ids = torch.zeros((width, 1), dtype=torch.int64)
        # All rows begin alike, so only the first counts.
        scores = torch.full((width,), _DEAD)
        scores[0] = 0.0
        codes = None
        for level, offset in enumerate(self.offsets):
            logits = model(level, codes).expand(width, -1)
            total = mask(token_ids, torch.log_softmax(logits, dim=-1)) + scores[:, None]
            # Twice the width, as for beams that may end; here none does.
            best, chosen = torch.topk(total.flatten(), 2 * width)
            scores, chosen = best[:width], chosen[:width]
            parents = torch.div(chosen, self.vocabulary, rounding_mode="floor")
            token = chosen - parents * self.vocabulary
            token_ids = torch.cat((token_ids[parents], token[:, None]), dim=1)
            codes = token - offset
        return token_ids[:, 1:] - torch.tensor(self.offsets), scores

    def spread(self, logits: Tensor, level: int) -> Tensor:
        """A level's logits (rows, K) over the whole vocabulary, all else impossible."""
        whole = torch.full((len(logits), self.vocabulary), _IMPOSSIBLE)
        offset = self.offsets[level]
        whole[:, offset : offset + logits.shape[1]] = logits
        return whole
