"""Every SID's score, from the model alone: whole sequences, no caches, no engine.

Slow and plain: what engines are compared with. A prompt is read again for each prefix of a SID, so
it is for tries or filters of a few thousand prefixes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from decoding.engine import Prompt
from decoding.weights import CONFIG_FILE, SETTINGS_FILE, WEIGHTS_FILE
from index.trie import Trie, TrieFilter
from models.transformer import Qwen3, Qwen3Config

BATCH_ROWS = 128
Leaves = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """The training module with a checkpoint's weights, and where SIDs are in its vocabulary."""

    module: Qwen3
    sid_offset: tuple[int, ...]

    @classmethod
    def open(cls, checkpoint: Path) -> Model:
        """Of a checkpoint directory, float32."""
        settings = json.loads((checkpoint / SETTINGS_FILE).read_bytes())
        config = Qwen3Config.from_json(json.loads((checkpoint / CONFIG_FILE).read_bytes()))
        tensors = load_file(checkpoint / WEIGHTS_FILE)
        if config.tie_word_embeddings:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        module = Qwen3(config)
        module.load_state_dict(tensors)
        return cls(module.eval(), tuple(settings["sid_offset"]))

    @torch.inference_mode()
    def level_logits(self, prompt: Prompt, prefixes: NDArray[np.int64], size: int) -> Any:
        """float64 (rows, size): logits of the code after each prefix (rows, level)."""
        level = prefixes.shape[1]
        tokens = prefixes + np.array(self.sid_offset[:level], dtype=np.int64)
        context = np.tile(prompt.token_ids.astype(np.int64), (len(tokens), 1))
        sequences = torch.from_numpy(np.concatenate((context, tokens), axis=1))
        states = torch.cat(
            [self.module.hidden(batch)[:, -1] for batch in sequences.split(BATCH_ROWS)]
        )
        first = self.sid_offset[level]
        output = self.module.lm_head.weight[first : first + size]
        return (states.double() @ output.double().T).numpy()


@dataclass(frozen=True, slots=True, eq=False)
class NodeScores:
    """One prompt's scores: float64 (n_l,) for the nodes of each level l, -inf where a filter left
    them out."""

    trie: Trie
    scores: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(
        cls, model: Model, trie: Trie, prompt: Prompt, allowed: TrieFilter | None = None
    ) -> NodeScores:
        """Scores of all nodes, or of those that lead to an allowed leaf."""
        scores: list[NDArray[np.float64]] = []
        parents, before = np.zeros(1, dtype=np.int64), np.zeros(1)
        prefixes = np.zeros((1, 0), dtype=np.int64)
        for level, size in enumerate(trie.layout.level_sizes):
            logits = model.level_logits(prompt, prefixes, size)
            if prompt.level_prior is not None:
                logits += prompt.level_prior[level]
            logits -= logits.max(axis=1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            row, node = _children(trie, level, parents, allowed)
            codes = trie.codes_at(level, node)
            found = np.full(trie.node_counts[level], -np.inf)
            found[node] = before[row] + logits[row, codes]
            scores.append(found)
            parents, before = node, found[node]
            prefixes = np.column_stack((prefixes[row], codes))
        return cls(trie, tuple(scores))

    def best(self, width: int, allowed: TrieFilter | None = None) -> Leaves:
        """The best allowed leaves, ties in SID order."""
        leaves = np.arange(self.trie.n_leaves)
        if allowed is not None:
            leaves = leaves[allowed.bits[-1]]
        return leaves[np.lexsort((leaves, -self.scores[-1][leaves]))[:width]]

    def beam(self, width: int, allowed: TrieFilter | None = None) -> Leaves:
        """What a beam of this width finds: at each level the best prefixes, ties in SID order."""
        nodes = np.zeros(1, dtype=np.int64)
        for level in range(self.trie.layout.levels):
            _, child = _children(self.trie, level, nodes, allowed)
            nodes = child[np.lexsort((child, -self.scores[level][child]))[:width]]
        return nodes


def prefixes_of(trie: Trie, allowed: TrieFilter | None = None) -> int:
    """How many sequences `NodeScores.of` reads: the prefixes that another code follows."""
    if allowed is None:
        return 1 + sum(trie.node_counts[:-1])
    return 1 + sum(int(bits.sum()) for bits in allowed.bits[:-1])


def _children(
    trie: Trie, level: int, parents: NDArray[np.int64], allowed: TrieFilter | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Place of its parent in `parents`, and node, of each allowed node of a level below them."""
    if level:
        first, end = trie.children(level - 1, parents)
    else:
        first, end = np.zeros(1, dtype=np.int64), np.array([trie.node_counts[0]])
    counts = end - first
    row = np.repeat(np.arange(len(parents)), counts)
    node = np.arange(len(row)) + np.repeat(end - np.cumsum(counts), counts)
    if allowed is None:
        return row, node
    kept = allowed.bits[level][node]
    return row[kept], node[kept]
