"""Peer: the beam search with a KV cache that one writes first, in torch.

The prompt is run once a query; then its keys and values are copied to a row for every beam, each
step appends to all rows, and reordering beams copies the whole cache. Logits and legality mask are
as wide as the vocabulary. It shares nothing with decoding/native but the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from decoding.weights import CONFIG_FILE, WEIGHTS_FILE
from index.trie import Trie

NAME = "row-expanded KV beam search"
_WORST = float("-inf")

Cache = list[tuple[Tensor, Tensor]]


class RowExpanded:
    """One checkpoint and one catalogue."""

    def __init__(
        self, directory: Path, dtype: torch.dtype, trie: Trie, sid_offset: Sequence[int]
    ) -> None:
        self._config: dict[str, Any] = json.loads((directory / CONFIG_FILE).read_bytes())
        tensors = load_file(directory / WEIGHTS_FILE)
        self._weights = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        tied = self._config["tie_word_embeddings"]
        self._output = self._weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
        self._trie, self._offsets = trie, tuple(sid_offset)
        self._cosine, self._sine = self._rotations(dtype)

    @torch.inference_mode()
    def search(self, prompts: Tensor, width: int) -> NDArray[np.int64]:
        """Prompts int64 (Q, T) → codes int64 (Q, beams, L), best first; SIDs of -inf are illegal
        and only there when the catalogue has fewer than `width`."""
        queries, length = prompts.shape
        state, cache = self._forward(prompts, [], 0)
        scores = torch.zeros(queries, 1)
        codes = torch.zeros((queries, 1, 0), dtype=torch.int64)
        nodes = np.zeros(queries, dtype=np.int64)
        for level, offset in enumerate(self._offsets):
            beams = codes.shape[1]
            rows = self._level_scores(state[:, -1], level, nodes)
            total = (scores.view(-1, 1) + rows).view(queries, -1)
            scores, chosen = torch.topk(total, min(width, total.shape[1]))
            parent = torch.div(chosen, rows.shape[1], rounding_mode="floor")
            token = chosen - parent * rows.shape[1]
            codes = torch.cat(
                (
                    codes.gather(1, parent[..., None].expand(-1, -1, level)),
                    (token - offset)[..., None],
                ),
                dim=2,
            )
            row = (parent + torch.arange(queries)[:, None] * beams).flatten()
            nodes = self._child(level, nodes[row.numpy()], (token - offset).flatten().numpy())
            if level < len(self._offsets) - 1:
                cache = [(keys[row], values[row]) for keys, values in cache]
                state, cache = self._forward(token.view(-1, 1), cache, length + level)
        return codes.numpy()

    def _forward(self, token_ids: Tensor, cache: Cache, start: int) -> tuple[Tensor, Cache]:
        """Token ids (B, t) after `start` cached positions → final states (B, t, d), new cache."""
        config, weights = self._config, self._weights
        heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
        state = functional.embedding(token_ids, weights["model.embed_tokens.weight"])
        longer: Cache = []
        for number in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{number}"
            normed = self._norm(state, f"{prefix}.input_layernorm")
            attention = f"{prefix}.self_attn"
            query = self._heads(normed, f"{attention}.q_proj", heads)
            keys = self._heads(normed, f"{attention}.k_proj", key_heads)
            values = self._heads(normed, f"{attention}.v_proj", key_heads)
            query = self._rotate(self._norm(query, f"{attention}.q_norm"), start)
            keys = self._rotate(self._norm(keys, f"{attention}.k_norm"), start)
            if cache:
                keys = torch.cat((cache[number][0], keys), dim=2)
                values = torch.cat((cache[number][1], values), dim=2)
            longer.append((keys, values))
            mixed = functional.scaled_dot_product_attention(
                query, keys, values, is_causal=not cache, enable_gqa=True
            )
            mixed = mixed.transpose(1, 2).flatten(2)
            state = state + functional.linear(mixed, weights[f"{attention}.o_proj.weight"])
            normed = self._norm(state, f"{prefix}.post_attention_layernorm")
            gate = functional.linear(normed, weights[f"{prefix}.mlp.gate_proj.weight"])
            up = functional.linear(normed, weights[f"{prefix}.mlp.up_proj.weight"])
            gated = functional.silu(gate) * up
            state = state + functional.linear(gated, weights[f"{prefix}.mlp.down_proj.weight"])
        return self._norm(state, "model.norm"), longer

    def _level_scores(self, state: Tensor, level: int, nodes: NDArray[np.int64]) -> Tensor:
        """States (B, d) at trie nodes of the level above → (B, vocabulary): log softmax over the
        level's tokens, -inf where the trie does not go on."""
        logits = functional.linear(state, self._output).float()
        size = self._trie.layout.level_sizes[level]
        offset = self._offsets[level]
        of_level = torch.full_like(logits, _WORST)
        of_level[:, offset : offset + size] = logits[:, offset : offset + size]
        legal = torch.zeros(logits.shape, dtype=torch.bool)
        row, child = self._children(level, nodes)
        token = self._trie.codes[level][child].astype(np.int64) + offset
        legal[torch.from_numpy(row), torch.from_numpy(token)] = True
        return torch.log_softmax(of_level, dim=-1).masked_fill_(~legal, _WORST)

    def _child(
        self, level: int, nodes: NDArray[np.int64], codes: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Nodes of `level` that the codes lead to; any node where they lead nowhere."""
        row, child = self._children(level, nodes)
        # Codes ascend within a row, so these keys ascend throughout.
        size = self._trie.layout.level_sizes[level]
        place = np.searchsorted(
            row * size + self._trie.codes[level][child], np.arange(len(nodes)) * size + codes
        )
        return child[np.minimum(place, len(child) - 1)]

    def _children(
        self, level: int, nodes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and node of every child, row after row."""
        if level:
            first, end = self._trie.children(level - 1, nodes)
        else:
            first = np.zeros(len(nodes), dtype=np.int64)
            end = np.full(len(nodes), self._trie.node_counts[0])
        counts = end - first
        row = np.repeat(np.arange(len(nodes)), counts)
        return row, np.arange(len(row)) + np.repeat(end - np.cumsum(counts), counts)

    def _heads(self, state: Tensor, name: str, heads: int) -> Tensor:
        projected = functional.linear(state, self._weights[f"{name}.weight"])
        return projected.unflatten(-1, (heads, -1)).transpose(1, 2)

    def _norm(self, state: Tensor, name: str) -> Tensor:
        weight = self._weights[f"{name}.weight"]
        return functional.rms_norm(state, weight.shape, weight, self._config["rms_norm_eps"])

    def _rotate(self, heads: Tensor, start: int) -> Tensor:
        span = slice(start, start + heads.shape[2])
        turned = torch.cat(heads.chunk(2, dim=-1)[::-1], dim=-1)
        return heads * self._cosine[span] + turned * self._sine[span]

    def _rotations(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        size, positions = self._config["head_dim"], self._config["max_position_embeddings"]
        rope: dict[str, Any] = self._config.get("rope_parameters") or {}
        theta = rope.get("rope_theta", self._config.get("rope_theta", 10_000.0))
        frequencies = theta ** (-torch.arange(0, size, 2).float() / size)
        angles = torch.arange(positions)[:, None] * frequencies
        cosine, sine = angles.cos(), angles.sin()
        both = torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)
        return both[0].to(dtype), both[1].to(dtype)
