"""Checkpoints of random weights for timing: Hugging Face Qwen3 files and onesearch.json.

The output matrix is scaled so that a level's logits have a deviation of about LOGIT_DEVIATION:
untrained logits are nearly equal, and which of two equal SIDs is right would be rounding.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from decoding.weights import CONFIG_FILE, SETTINGS_FILE, WEIGHTS_FILE
from index.sid import SidLayout
from models.transformer import INITIALIZER_RANGE, Qwen3, Qwen3Config

LAYOUT = SidLayout((512, 256, 256))
TEXT_TOKENS = 8192
LOGIT_DEVIATION = 2.0


@dataclass(frozen=True, slots=True)
class Size:
    """A decoder's shape."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int


SIZES = {
    "2 layers, d 256": Size(256, 768, 2, 8, 4, 32),
    "12 layers, d 768": Size(768, 2048, 12, 12, 6, 64),
}


def write_random_checkpoint(
    directory: Path, size: Size, layout: SidLayout = LAYOUT, text_tokens: int = TEXT_TOKENS
) -> None:
    """Write config.json, onesearch.json and model.safetensors of an untied random decoder."""
    directory.mkdir(parents=True, exist_ok=True)
    offsets = [text_tokens + sum(layout.level_sizes[:level]) for level in range(layout.levels)]
    config = Qwen3Config(
        vocab_size=text_tokens + sum(layout.level_sizes),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        head_dim=size.head_dim,
        max_position_embeddings=256,
    )
    model = Qwen3(config).initialise(torch.Generator().manual_seed(7))
    scale = LOGIT_DEVIATION / (INITIALIZER_RANGE * size.hidden**0.5)
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
        # Far from its initial state, so that the context matters to the scores.
        model.model.embed_tokens.weight.mul_(1 / INITIALIZER_RANGE)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    (directory / CONFIG_FILE).write_text(json.dumps(config.to_json()), encoding="utf-8")
    settings = {"level_sizes": list(layout.level_sizes), "sid_offset": offsets}
    (directory / SETTINGS_FILE).write_text(json.dumps(settings), encoding="utf-8")
