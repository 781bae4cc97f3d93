"""What is measured: decoders of random weights, catalogues of random SIDs, random prompts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from decoding.engine import Prompt
from decoding.weights import DecoderWeights
from index.sid import SidLayout
from index.trie import Trie
from loadtest.bench.catalogues import random_keys
from models.transformer import Qwen3Config

THREE_LEVELS = SidLayout((8192, 8192, 8192))
FIVE_LEVELS = SidLayout((4096, 1024, 512, 256, 256))
SHARPNESS = 3.0
"""Of the logits, roughly their standard deviation: trained decoders are not flat, and flat ones are
all ties."""


class Subject(NamedTuple):
    """A decoder as Hugging Face names it, and where its SID tokens are."""

    config: Qwen3Config
    tensors: dict[str, Tensor]
    layout: SidLayout
    sid_offset: tuple[int, ...]

    def weights(self, dtype: torch.dtype, device: torch.device | str) -> DecoderWeights:
        return DecoderWeights.from_state_dict(
            self.config.to_json(),
            self.tensors,
            self.layout,
            self.sid_offset,
            dtype=dtype,
            device=device,
        )

    @property
    def layer_parameters(self) -> int:
        """Numbers in the matrices that every row passes through."""
        return sum(
            tensor.numel()
            for name, tensor in self.tensors.items()
            if ".layers." in name and tensor.dim() == 2
        )


def qwen3_1_7b(vocabulary: int) -> Qwen3Config:
    """The published shape (Qwen/Qwen3-1.7B), with another vocabulary."""
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        rope_theta=1e6,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )


def small(vocabulary: int) -> Qwen3Config:
    """The default decoder of `onesearch train`, two layers."""
    return Qwen3Config(vocab_size=vocabulary, num_hidden_layers=2)


def subject(
    config: Qwen3Config,
    layout: SidLayout,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Subject:
    """Random weights of `config`, whose last tokens are the layout's SID tokens."""
    generator = torch.Generator(device).manual_seed(seed)
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    key_heads, inner = config.num_key_value_heads * config.head_dim, config.intermediate_size

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        drawn = torch.randn((rows, columns), generator=generator, device=device, dtype=dtype)
        return drawn.mul_(gain * columns**-0.5)

    def ones(size: int, value: float = 1.0) -> Tensor:
        return torch.full((size,), value, device=device, dtype=dtype)

    # States and embeddings have numbers near 1, so that context and parents matter to the scores.
    tensors = {"model.embed_tokens.weight": matrix(config.vocab_size, width, width**0.5)}
    residual = (2 * config.num_hidden_layers) ** -0.5
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": ones(width),
            f"{prefix}.self_attn.q_proj.weight": matrix(heads, width),
            f"{prefix}.self_attn.k_proj.weight": matrix(key_heads, width),
            f"{prefix}.self_attn.v_proj.weight": matrix(key_heads, width),
            f"{prefix}.self_attn.o_proj.weight": matrix(width, heads, 4 * residual),
            f"{prefix}.self_attn.q_norm.weight": ones(config.head_dim),
            f"{prefix}.self_attn.k_norm.weight": ones(config.head_dim),
            f"{prefix}.post_attention_layernorm.weight": ones(width),
            f"{prefix}.mlp.gate_proj.weight": matrix(inner, width),
            f"{prefix}.mlp.up_proj.weight": matrix(inner, width),
            f"{prefix}.mlp.down_proj.weight": matrix(width, inner, 2 * residual),
        }
    # Tied or not, a logit is a product with numbers near 1 (tied) or 1/√d.
    scale = SHARPNESS * (width**-0.5 if config.tie_word_embeddings else 1.0)
    tensors["model.norm.weight"] = ones(width, scale)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = matrix(config.vocab_size, width)
    ends = config.vocab_size - sum(layout.level_sizes)
    offsets: list[int] = []
    for size in layout.level_sizes:
        offsets.append(ends)
        ends += size
    return Subject(config, tensors, layout, tuple(offsets))


def catalogue(layout: SidLayout, sids: int, seed: int = 7) -> Trie:
    """A few prefixes hold most SIDs, as in real catalogues."""
    return Trie.build(layout, random_keys(layout, sids, "zipf", seed), assume_sorted=True)


def prompts(count: int, length: int, words: int, seed: int = 0) -> list[Prompt]:
    """Random prompts of one length, of the first `words` tokens."""
    random = np.random.default_rng(seed)
    return [Prompt(random.integers(0, words, length).astype(np.int32)) for _ in range(count)]
