"""Inference of the decoder on CUDA: the twin of decoding/native/transformer.py in fixed shapes.

Nothing here waits for the device or depends on its values, so a whole decode can be captured in a
CUDA graph. Rows of a wave are (Q, W), beams that are gone included; they compute, and nobody reads
them. Needs Triton; runs on the CPU in its interpreter (TRITON_INTERPRET=1).

Shapes: Q prompts padded on the right to T, W beams each, rows = Q·W, C key heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from decoding.cuda.attention import OwnPositions, attend
from decoding.cuda.kernels import (
    Placement,
    add_and_normalise,
    embed_and_normalise,
    silu_multiply,
    turn_heads,
)
from decoding.weights import DecoderShape, DecoderWeights, LayerWeights


@dataclass(frozen=True, slots=True, eq=False)
class ContextKV:
    """Keys and values of the prompts, each (layers, Q, C, T, D); lengths int32 (Q,), at least 1."""

    keys: Tensor
    values: Tensor
    lengths: Tensor

    @classmethod
    def empty(
        cls, shape: DecoderShape, longest: int, lengths: Tensor, dtype: torch.dtype
    ) -> ContextKV:
        size = (shape.layers, len(lengths), shape.key_heads, longest, shape.head_dim)
        keys, values = (torch.empty(size, dtype=dtype, device=lengths.device) for _ in range(2))
        return cls(keys, values, lengths)


@dataclass(frozen=True, slots=True, eq=False)
class BeamKV:
    """Keys and values of generated positions, as computed: each (layers, L - 1, rows, C, D)."""

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(
        cls, shape: DecoderShape, steps: int, rows: int, dtype: torch.dtype, device: torch.device
    ) -> BeamKV:
        size = (shape.layers, steps, rows, shape.key_heads, shape.head_dim)
        keys, values = (torch.empty(size, dtype=dtype, device=device) for _ in range(2))
        return cls(keys, values)


class CudaDecoder:
    """Stateless but for its weights."""

    def __init__(self, weights: DecoderWeights) -> None:
        self.weights = weights
        self.shape = weights.shape
        self.dtype = weights.embedding.dtype
        self.device = weights.device
        self._cosine, self._sine = self._rotations()
        # Sums and results are float32; the factors are as exact as the states are.
        self._outputs = [output.to(self.dtype) for output in weights.level_output]

    def prefill(self, token_ids: Tensor, context: ContextKV) -> Tensor:
        """Fills the context from int32 (Q, T) → final states of the last tokens, (Q, d)."""
        queries, longest = token_ids.shape
        layers = self.weights.layers
        state, normed = embed_and_normalise(
            token_ids.view(-1),
            self.weights.embedding,
            layers[0].attention_norm,
            self.shape.epsilon,
        )
        last = torch.arange(queries, device=self.device) * longest + (context.lengths - 1)
        for number, layer in enumerate(layers):
            keys, values = context.keys[number], context.values[number]
            strides = (keys.stride(0), keys.stride(2), keys.stride(1))
            projected = functional.linear(normed, layer.qkv)
            self._turn(projected, layer, Placement(keys, values, strides, longest, None, 0))
            if number == self.shape.layers - 1:
                # Nobody reads the last layer's other states.
                state = state.index_select(0, last)
                projected = projected.index_select(0, last)
                mixed = attend(projected, keys, values, context.lengths, self.shape.heads)
            else:
                mixed = self._attend_prompt(projected, keys, values)
            normed = self._finish(number, state, mixed)
        return normed

    def step(
        self, token_ids: Tensor, number: int, ancestry: Tensor, context: ContextKV, beams: BeamKV
    ) -> Tensor:
        """Generated position `number` (from 0) of every row → final states (rows, d).

        `token_ids` int32 (rows,); `ancestry` int32 (≥ number, rows), see Trace.
        """
        rows, queries = len(token_ids), len(context.lengths)
        layers = self.weights.layers
        state, normed = embed_and_normalise(
            token_ids, self.weights.embedding, layers[0].attention_norm, self.shape.epsilon
        )
        for index, layer in enumerate(layers):
            own = OwnPositions(beams.keys[index], beams.values[index], ancestry, number + 1)
            keys, values = own.keys[number], own.values[number]
            width = rows // queries
            strides = (width * keys.stride(0), keys.stride(0), keys.stride(1))
            projected = functional.linear(normed, layer.qkv)
            place = Placement(keys, values, strides, width, context.lengths, number)
            self._turn(projected, layer, place)
            mixed = attend(
                projected,
                context.keys[index],
                context.values[index],
                context.lengths,
                self.shape.heads,
                own,
            )
            normed = self._finish(index, state, mixed)
        return normed

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """Final states (rows, d) → float32 (rows, K_level), without the prior."""
        output = self._outputs[level].t()
        if self.dtype == torch.float32:
            return torch.mm(hidden, output)
        if hidden.is_cuda:
            return torch.mm(hidden, output, out_dtype=torch.float32)
        return torch.mm(hidden.float(), output.float())

    def _turn(
        self,
        projected: Tensor,
        layer: LayerWeights,
        place: Placement,
    ) -> None:
        turn_heads(
            projected,
            layer.qk_norm,
            self._cosine,
            self._sine,
            self.shape.heads,
            self.shape.key_heads,
            self.shape.epsilon,
            place,
        )

    def _attend_prompt(self, projected: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of all tokens. Padding lies to the right, where nobody looks."""
        queries, _, longest, size = keys.shape
        heads = projected.view(queries, longest, -1, size)[:, :, : self.shape.heads]
        mixed = functional.scaled_dot_product_attention(
            heads.transpose(1, 2),
            keys,
            values,
            is_causal=True,
            scale=1.0,
            enable_gqa=self.shape.heads != self.shape.key_heads,
        )
        return mixed.transpose(1, 2).reshape(queries * longest, -1)

    def _finish(self, number: int, state: Tensor, mixed: Tensor) -> Tensor:
        """Attention output and feed-forward, each added to the state in place → what the next
        layer reads, normalised."""
        layer, epsilon = self.weights.layers[number], self.shape.epsilon
        update = functional.linear(mixed, layer.attention_output)
        normed = add_and_normalise(state, update, layer.mlp_norm, epsilon)
        update = functional.linear(
            silu_multiply(functional.linear(normed, layer.gate_up)), layer.down
        )
        following = number + 1
        norm = (
            self.weights.final_norm
            if following == self.shape.layers
            else self.weights.layers[following].attention_norm
        )
        return add_and_normalise(state, update, norm, epsilon)

    def _rotations(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position, float32 (positions, D / 2)."""
        shape = self.shape
        exponents = torch.arange(0, shape.head_dim, 2, device=self.device).float()
        frequencies = shape.rope_theta ** (-exponents / shape.head_dim)
        angles = torch.arange(shape.max_positions, device=self.device)[:, None] * frequencies
        return angles.cos(), angles.sin()
