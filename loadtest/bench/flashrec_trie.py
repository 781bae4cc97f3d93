"""Peer: the trie and expansion of FlashRec (PyPI `flashrec` 0.1.2), its own torch functions.

Its step takes the best 2·width codes of each row, masks those that leave the trie, and keeps the
best `width` of the rest: exact while every row has enough legal codes among them. The package's
engine needs CUDA; `flashrec.search` runs on the CPU. Its trie is built from Python sets per prefix,
so beyond a small catalogue its tables are filled here from arrays, in the form that its own build
gives (a test compares the two).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.trie import Trie
from loadtest.bench.padded import LogitsOf

NAME = "FlashRec, torch"
MOST_OWN_BUILD_SIDS = 10_000


def why_missing() -> str | None:
    """Why it cannot run here, None when it can."""
    try:
        import_module("flashrec.search.expand")
    except ImportError as error:
        return f"not installed: {error}"
    return None


class FlashRecTrie:
    """One catalogue in FlashRec's form; tokens of all levels lie in one row, level after level."""

    def __init__(self, trie: Trie) -> None:
        self._layout = trie.layout
        sizes = trie.layout.level_sizes
        self._offsets = [sum(sizes[:level]) for level in range(len(sizes))]
        self._tokens = [
            torch.arange(offset, offset + size)
            for offset, size in zip(self._offsets, sizes, strict=True)
        ]
        small = trie.n_leaves <= MOST_OWN_BUILD_SIDS
        self.path: Any = self._own_build(trie) if small else self._filled(trie)
        self._expand: Any = import_module("flashrec.search.expand")

    @torch.inference_mode()
    def search(self, model: LogitsOf, width: int) -> tuple[Tensor, Tensor]:
        """Beam search of one query → codes int64 (width, L) and scores (width,), illegal rows at
        -inf. `model` gives the logits of a level from the last code of every row."""
        levels = self._layout.levels
        beams = self._expand.init_from_prefill(
            torch.log_softmax(model(0, None)[0], dim=-1),
            beam_width=width,
            beam_candidates=2 * width,
            max_new_tokens=levels,
            prompt_len=1,
            valid_path=self.path,
            candidate_token_ids=self._tokens[0],
        )
        for level in range(1, levels):
            codes = beams.last_tokens - self._offsets[level - 1]
            scores = torch.log_softmax(model(level, codes), dim=-1)
            wanted = min(2 * width, scores.shape[1])
            best, code = torch.topk(scores, wanted, dim=1, sorted=True)
            self._expand.expand_step(
                beams,
                self._tokens[level][code],
                best,
                width,
                valid_path=self.path,
                will_finish=level == levels - 1,
            )
        tokens = beams.token_ids[:width]
        return tokens - torch.tensor(self._offsets), beams.cum_logprobs

    def _own_build(self, trie: Trie) -> Any:
        tokens = trie.layout.unpack(trie.keys) + np.asarray(self._offsets)
        module = import_module("flashrec.search.trie")
        path = module.build_trie_from_sequences(tokens.tolist())
        path.finalize_index(token_base=0, vocab_size=sum(self._layout.level_sizes))
        return path

    def _filled(self, trie: Trie) -> Any:
        """Edges (node · vocabulary + token → child), sorted; -1 leads on from the last level."""
        vocabulary = sum(self._layout.level_sizes)
        keys: list[NDArray[np.int64]] = []
        children: list[NDArray[np.int64]] = []
        first_node, parents = 0, np.zeros(trie.node_counts[0], dtype=np.int64)
        for level, codes in enumerate(trie.codes):
            last = level == len(trie.codes) - 1
            keys.append((first_node + parents) * vocabulary + self._offsets[level] + codes)
            first_node += trie.node_counts[level - 1] if level else 1
            numbers = np.arange(len(codes), dtype=np.int64)
            children.append(np.full(len(codes), -1) if last else first_node + numbers)
            if not last:
                parents = np.repeat(numbers, np.diff(trie.starts[level].plain()))
        path = import_module("flashrec.search.trie").BeamValidPathTrie(
            max_depth=len(trie.codes), mode="trie", token_base=0, vocab_size=vocabulary
        )
        # Internal nodes are numbered by level and prefix, the root first; one more is invalid.
        path._invalid_node, path._index_ready = first_node, True
        path._csr_keys = torch.from_numpy(np.concatenate(keys))
        path._csr_child = torch.from_numpy(np.concatenate(children))
        path._cache_device = torch.device("cpu")
        return path
