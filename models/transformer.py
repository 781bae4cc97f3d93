"""The decoder that is trained: Qwen3 (grouped-query attention, per-head q/k RMSNorm, rotary
positions, SwiGLU), with Hugging Face's parameter names, so that a state dict is a checkpoint.

Source: Qwen3 technical report (arXiv 2505.09388) and the `Qwen3ForCausalLM` checkpoint format.
The inference twin is `decoding/native/transformer.py`; a parity test ties the two.

Rows are short (packed examples of about 64 tokens), so the arithmetic around the matrix products
decides the speed on a CPU. Hence plain bmm–softmax–bmm attention, projections fused when they run,
and norm, rotation and SwiGLU's gate in one pass each (`models.fused`). Under autocast everything
between the products stays in the autocast type. Who needs the final states of some tokens only
names them (`points`): of the others the last layer computes keys and values and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from index.errors import ConfigError
from models.dropout import Dropout
from models.fused import gated_unit, parted_heads, rms_norm
from models.rows import (
    Frame,
    Points,
    Rotation,
    additive_mask,
    bias_at,
    rotation_at,
    states_at,
)

_NO_DROPOUT = Dropout(0.0)
ARCHITECTURE = "Qwen3ForCausalLM"
MODEL_TYPE = "qwen3"
INITIALIZER_RANGE = 0.02


@dataclass(frozen=True, slots=True)
class Qwen3Config:
    """Shape of a decoder; `to_json` / `from_json` are Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd; rotary positions need pairs")

    def to_json(self) -> dict[str, Any]:
        """config.json of a Hugging Face checkpoint."""
        return {
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": INITIALIZER_RANGE,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": True,
            "use_sliding_window": False,
            "dtype": "float32",
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Qwen3Config:
        """Read config.json. Raises ConfigError when it is no plain Qwen3."""
        if raw.get("model_type") != MODEL_TYPE:
            raise ConfigError(f"model_type {raw.get('model_type')!r}, expected {MODEL_TYPE!r}")
        for key, plain in (("attention_bias", False), ("use_sliding_window", False)):
            if raw.get(key, plain) != plain:
                raise ConfigError(f"{key} {raw[key]!r} is not supported, expected {plain!r}")
        rope = cast(dict[str, Any], raw.get("rope_parameters") or raw.get("rope_scaling") or {})
        if rope.get("rope_type", "default") != "default":
            raise ConfigError(f"rope_type {rope['rope_type']!r} is not supported, only 'default'")
        try:
            heads = int(raw["num_attention_heads"])
            return cls(
                vocab_size=int(raw["vocab_size"]),
                hidden_size=int(raw["hidden_size"]),
                intermediate_size=int(raw["intermediate_size"]),
                num_hidden_layers=int(raw["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(raw.get("num_key_value_heads", heads)),
                head_dim=int(raw.get("head_dim", raw["hidden_size"] // heads)),
                rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
                rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
                max_position_embeddings=int(raw.get("max_position_embeddings", 2048)),
                tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            )
        except KeyError as error:
            raise ConfigError(f"config.json has no {error.args[0]!r}") from None


class Qwen3(nn.Module):
    """Decoder-only language model. `hidden` gives states, `logits` and `level_logits` read them.

    `recompute` (a plain attribute): keep only each layer's input for the backward pass and compute
    the rest again (gradient checkpointing), a third more work for a fraction of the memory.
    """

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def initialise(self, generator: torch.Generator) -> Qwen3:
        """Normal(0, 0.02) matrices, residual outputs scaled by 1/√(2·layers), unit norms."""
        residual_scale = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.ones_(parameter)
                continue
            deviation = INITIALIZER_RANGE
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                deviation *= residual_scale
            nn.init.normal_(parameter, 0.0, deviation, generator=generator)
        return self

    def embed(self, token_ids: Tensor) -> Tensor:
        """Input embeddings (B, T, d) of token ids (B, T)."""
        return self.model.embed_tokens(token_ids)

    def hidden(
        self,
        token_ids: Tensor | None,
        position_ids: Tensor | None = None,
        attention_bias: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        points: Points | None = None,
        dropout: Dropout | None = None,
        frame: Frame | None = None,
    ) -> Tensor:
        """Final, normalised states (B, T, d); of `points` only, (N, d), where they are given.

        `token_ids` int (B, T), or `inputs_embeds` (B, T, d) in their place. `position_ids`
        (B, T), default 0…T-1. `attention_bias` (B or 1, 1, T, T): bool, true where a query (third
        axis) may see a key (fourth), or an additive float mask; default causal. A query that may
        see nothing (padding) gets a finite state of no meaning. `dropout` falls on the embeddings
        and on each block's two outputs. `frame`, where given, stands for `position_ids` and
        `attention_bias`.
        """
        embeddings = inputs_embeds
        if embeddings is None:
            embeddings = self._looked_up(_required(token_ids))
        compute_type = _compute_type(embeddings)
        if frame is None:
            count, length, _ = embeddings.shape
            if position_ids is None:
                position_ids = torch.arange(length, device=embeddings.device)[None]
            frame = self.frame(position_ids.expand(count, -1), attention_bias, compute_type)
        drop = dropout or _NO_DROPOUT
        state = drop(embeddings.to(compute_type), 0)
        last = len(self.model.layers) - 1
        for number, layer in enumerate(self.model.layers):
            wanted = points if number == last else None
            arguments = (state, *frame, drop, number, wanted)
            if self.recompute and torch.is_grad_enabled():
                state = cast(Tensor, checkpoint(layer, *arguments, use_reentrant=False))
            else:
                state = cast(DecoderLayer, layer)(*arguments)
        return self.model.norm(state)

    def frame(
        self, position_ids: Tensor, attention_bias: Tensor | None, compute_type: torch.dtype
    ) -> Frame:
        """Of rows with these positions (B, T) and this mask, as `hidden` takes them."""
        length, device = position_ids.shape[1], position_ids.device
        bias = additive_mask(attention_bias, length, compute_type, device)
        return Frame(self._rotation(position_ids), bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, d) → (…, vocab_size)."""
        return self.lm_head(hidden)

    def level_logits(self, hidden: Tensor, level_slice: slice) -> Tensor:
        """(…, d) → (…, K): one level's codebook only; `level_slice` holds its token ids."""
        return functional.linear(hidden, self.lm_head.weight[level_slice])

    def forward(self, token_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Causal logits (B, T, vocab_size)."""
        return self.logits(self.hidden(token_ids, position_ids))

    def _looked_up(self, token_ids: Tensor) -> Tensor:
        """Input embeddings; without a gradient in the computing type at once, half the bytes."""
        table = self.model.embed_tokens.weight
        if torch.is_grad_enabled():
            return functional.embedding(token_ids, table)
        return functional.embedding(token_ids, table.to(_compute_type(table)))

    def _rotation(self, position_ids: Tensor) -> Rotation:
        config = self.config
        exponents = torch.arange(0, config.head_dim, 2, device=position_ids.device).float()
        frequencies = config.rope_theta ** (-exponents / config.head_dim)
        angles = position_ids[:, :, None].float() * frequencies
        return Rotation(angles.cos(), angles.sin())


class Backbone(nn.Module):
    """Everything but the output matrix (`model.` in the parameter names)."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)


class DecoderLayer(nn.Module):
    """Pre-norm attention, pre-norm SwiGLU."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGlu(config)

    def forward(
        self,
        state: Tensor,
        rotation: Rotation,
        bias: Tensor,
        drop: Dropout,
        number: int,
        points: Points | None,
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(state), rotation, bias, points)
        if points is not None:
            state = state.flatten(0, 1).index_select(0, points.position)
        state = drop.added(state, attended, 2 * number + 1)
        widened = self.mlp(self.post_attention_layernorm(state))
        return drop.added(state, widened, 2 * number + 2)


class Attention(nn.Module):
    """Grouped-query attention over whole rows; each key head serves `group` query heads."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        width = config.hidden_size
        self.q_proj = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.key_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.key_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, width, bias=False)
        self.q_norm = RmsNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RmsNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self, state: Tensor, rotation: Rotation, bias: Tensor, points: Points | None = None
    ) -> Tensor:
        """(B, T, d) of states (B, T, d); (N, d) of points."""
        batch, length, _ = state.shape
        places = None if points is None else points.places
        asking = length if places is None else places.shape[1]
        query, key, value = self._heads(state, rotation, places)
        group = self.heads // self.key_heads
        # Query heads of one group lie beside their key head: fold them into its rows.
        query = query.reshape(batch * self.key_heads, group * asking, self.head_dim)
        key = key.reshape(batch * self.key_heads, length, self.head_dim)
        value = value.reshape(batch * self.key_heads, length, self.head_dim)
        scores = torch.bmm(query, key.transpose(1, 2))
        allowed = bias if places is None else bias_at(bias, places)
        scores = scores.view(batch, self.heads, asking, length).add_(allowed)
        weights = torch.softmax(scores, dim=-1).view(batch * self.key_heads, -1, length)
        mixed = torch.bmm(weights, value).view(batch, self.heads, asking, self.head_dim)
        mixed = mixed.transpose(1, 2).reshape(batch, asking, -1)
        if points is not None:
            mixed = mixed.flatten(0, 1).index_select(0, points.kept)
        return self.o_proj(mixed)

    def _heads(
        self, state: Tensor, rotation: Rotation, places: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T or P, D) of the places, keys and values (B, C, T, D) of all."""
        # The scores' 1/√D rides on the norm's weight.
        to_query = (self.q_norm.weight * self.head_dim**-0.5).expand(self.heads, -1)
        to_key = self.k_norm.weight.expand(self.key_heads, -1)
        matrices = (self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        if places is None:
            both = torch.cat((to_query, to_key))
            return self._parted(state, matrices, both, rotation, (self.heads, self.key_heads))
        asked = rotation_at(rotation, places)
        query, _, _ = self._parted(
            states_at(state, places), matrices[:1], to_query, asked, (self.heads, 0)
        )
        _, key, value = self._parted(state, matrices[1:], to_key, rotation, (0, self.key_heads))
        return query, key, value

    def _parted(
        self,
        state: Tensor,
        matrices: tuple[Tensor, ...],
        weight: Tensor,
        rotation: Rotation,
        heads: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        matrix = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
        projected = functional.linear(state, matrix).view(*state.shape[:2], -1, self.head_dim)
        return parted_heads(projected, weight, self.q_norm.epsilon, *rotation, heads)


class SwiGlu(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, state: Tensor) -> Tensor:
        both = torch.cat((self.gate_proj.weight, self.up_proj.weight))
        return self.down_proj(gated_unit(functional.linear(state, both)))


class RmsNorm(nn.Module):
    """x / √(mean x² + ε) · weight over the last axis."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, state: Tensor) -> Tensor:
        return rms_norm(state, self.weight, self.epsilon)


def _compute_type(embeddings: Tensor) -> torch.dtype:
    device = embeddings.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return embeddings.dtype


def _required(token_ids: Tensor | None) -> Tensor:
    if token_ids is None:
        raise ConfigError("hidden() needs token_ids or inputs_embeds")
    return token_ids
