"""The decoder's tensors, arranged for inference, from a checkpoint directory or live tensors.

Reads Hugging Face Qwen3 names. Projections that read the same input are joined; each level gets
its own small output matrix, so that no step ever touches the whole vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from index.errors import ArtifactError
from index.sid import SidLayout

CONFIG_FILE = "config.json"
SETTINGS_FILE = "onesearch.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What config.json says of the arithmetic."""

    hidden_size: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    epsilon: float
    rope_theta: float
    max_positions: int
    tied: bool

    @classmethod
    def from_directory(cls, path: Path) -> DecoderShape:
        """Of a checkpoint directory. Raises ArtifactError."""
        return cls.from_json(_read_json(Path(path) / CONFIG_FILE))

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> DecoderShape:
        """Raises ArtifactError for other architectures."""
        if raw.get("model_type") != "qwen3":
            raise ArtifactError(f"model_type is {raw.get('model_type')!r}, expected 'qwen3'")
        rope = cast(Mapping[str, Any], raw.get("rope_parameters") or {})
        try:
            heads = int(raw["num_attention_heads"])
            return cls(
                hidden_size=int(raw["hidden_size"]),
                layers=int(raw["num_hidden_layers"]),
                heads=heads,
                key_heads=int(raw.get("num_key_value_heads", heads)),
                head_dim=int(raw.get("head_dim", raw["hidden_size"] // heads)),
                epsilon=float(raw["rms_norm_eps"]),
                rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
                max_positions=int(raw["max_position_embeddings"]),
                tied=bool(raw.get("tie_word_embeddings", False)),
            )
        except KeyError as error:
            raise ArtifactError(f"{CONFIG_FILE} has no {error.args[0]!r}") from None


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One layer; matrices are (out, in) in the computing type."""

    attention_norm: Tensor
    qkv: Tensor
    """((heads + 2 key_heads)·head_dim, d)"""
    qk_norm: Tensor
    """(heads + key_heads, head_dim); the query part carries 1/√head_dim."""
    attention_output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    """(2·intermediate, d)"""
    down: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DecoderWeights:
    """Everything a step reads. `level_output[l]` is float32 (K_l, d) in any computing type: the
    ranking is decided there."""

    shape: DecoderShape
    layout: SidLayout
    sid_offset: tuple[int, ...]
    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    level_output: tuple[Tensor, ...]

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def vocabulary(self) -> int:
        return self.embedding.shape[0]

    @classmethod
    def from_directory(
        cls,
        path: Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> DecoderWeights:
        """Read a checkpoint directory (config.json, onesearch.json, model.safetensors). Hashes are
        the caller's business. Raises ArtifactError when something is missing or does not fit."""
        path = Path(path)
        settings = _read_json(path / SETTINGS_FILE)
        try:
            with safe_open(path / WEIGHTS_FILE, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path / WEIGHTS_FILE} cannot be read: {error}") from None
        return cls.from_state_dict(
            _read_json(path / CONFIG_FILE),
            tensors,
            SidLayout.from_json(settings),
            tuple(int(offset) for offset in settings["sid_offset"]),
            dtype=dtype,
            device=device,
        )

    @classmethod
    def from_state_dict(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        layout: SidLayout,
        sid_offset: tuple[int, ...],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> DecoderWeights:
        """Arrange tensors by Hugging Face name, such as those of a model in training (copied
        where they are joined or cast: take them again after an update)."""
        shape = DecoderShape.from_json(config)
        broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
        if broken:
            raise ArtifactError(f"tensor {broken[0]} has values that are not finite")

        def take(name: str, kind: torch.dtype = dtype) -> Tensor:
            try:
                return tensors[f"{name}.weight"].detach().to(device, kind).contiguous()
            except KeyError:
                raise ArtifactError(f"tensor {name}.weight is missing") from None

        layers = tuple(_layer(take, shape, layer) for layer in range(shape.layers))
        output = take("model.embed_tokens" if shape.tied else "lm_head", torch.float32)
        ends = [offset + size for offset, size in zip(sid_offset, layout.level_sizes, strict=True)]
        if max(ends) > len(output):
            raise ArtifactError(f"SID tokens reach {max(ends)}, the output has {len(output)} rows")
        level_output = tuple(
            output[offset:end].clone() for offset, end in zip(sid_offset, ends, strict=True)
        )
        embedding, final_norm = take("model.embed_tokens"), take("model.norm")
        return cls(shape, layout, sid_offset, embedding, layers, final_norm, level_output)


def is_finite(tensor: Tensor) -> bool:
    """Whether all values of a tensor are numbers and none is infinite. One pass without a copy,
    since it is done beside searches; `isfinite().all()` takes forty times as long."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor.detach())
    return math.isfinite(low) and math.isfinite(high)


def _layer(take: Callable[[str], Tensor], shape: DecoderShape, layer: int) -> LayerWeights:
    prefix = f"model.layers.{layer}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    query_norm = take(f"{attention}.q_norm").expand(shape.heads, -1) * shape.head_dim**-0.5
    key_norm = take(f"{attention}.k_norm").expand(shape.key_heads, -1)
    return LayerWeights(
        attention_norm=take(f"{prefix}.input_layernorm"),
        qkv=torch.cat([take(f"{attention}.{part}_proj") for part in "qkv"]),
        qk_norm=torch.cat((query_norm, key_norm)),
        attention_output=take(f"{attention}.o_proj"),
        mlp_norm=take(f"{prefix}.post_attention_layernorm"),
        gate_up=torch.cat([take(f"{mlp}.{part}_proj") for part in ("gate", "up")]),
        down=take(f"{mlp}.down_proj"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None
