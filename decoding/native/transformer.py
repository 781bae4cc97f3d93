"""Inference of the decoder on the CPU: prefill once a prompt, then one position a level for all
beams.

The inference twin of models/transformer.py (a parity test ties them). Rows of a wave are ragged:
those of prompt 0, then of prompt 1, …, any number each. A layer is four products with its weights,
two a block with the prompts' contexts, and one kernel between any two of these; the residual state
is float32 in any computing type.

Shapes: Q prompts, T longest prompt, H heads, C key heads, G = H / C, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from decoding.native.kernels import (
    Indices,
    add_and_normalise,
    blend,
    gate,
    normalise,
    place_keys,
    place_queries,
    soften,
)
from decoding.native.kv import BeamKV, ContextKV
from decoding.native.numbers import Array, Floats, raw
from decoding.native.product import Product
from decoding.native.rows import Rows
from decoding.native.sizes import roomy, rounded
from decoding.team import torch_team
from decoding.weights import DecoderWeights, LayerWeights


class _Layer:
    """One layer's products, and its norms in float32."""

    def __init__(
        self, weights: LayerWeights, query_rows: int, heads: int, *, measured: bool
    ) -> None:
        product = partial(Product, measured=measured)
        self.qkv = product(weights.qkv)
        self.attention_output = product(weights.attention_output)
        self.gate_up = product(weights.gate_up)
        self.down = product(weights.down)
        self.attention_norm = weights.attention_norm.float().numpy()
        self.mlp_norm = weights.mlp_norm.float().numpy()
        halves = weights.qk_norm.float().numpy().reshape(len(weights.qk_norm), 2, -1)
        self.query_norm, self.key_norm = halves[:heads], halves[heads:]
        # The last layer's states of a prompt serve its keys and values only, but for the last one.
        self.query = product(weights.qkv[:query_rows].contiguous())
        self.key_value = product(weights.qkv[query_rows:].contiguous())


class _Generated(NamedTuple):
    """One layer's generated keys and values (steps, rows, C, D), and who descends from whom."""

    keys: Array
    values: Array
    ancestry: Indices


class Decoder:
    """Stateless but for its weights, which are on the CPU; safe to use from several threads.

    `measured` False: products as torch does them, so that results repeat from process to process.
    """

    def __init__(self, weights: DecoderWeights, *, measured: bool = True) -> None:
        assert weights.device.type == "cpu"
        self.weights = weights
        self.shape = weights.shape
        self.dtype = weights.embedding.dtype
        query_rows = self.shape.heads * self.shape.head_dim
        self._layers = [
            _Layer(layer, query_rows, self.shape.heads, measured=measured)
            for layer in weights.layers
        ]
        self._final_norm = weights.final_norm.float().numpy()
        self._level_output = [Product(output, measured=measured) for output in weights.level_output]
        self._cosine, self._sine = self._rotations()

    def prefill(self, prompts: Sequence[NDArray[np.int32]]) -> tuple[ContextKV, Tensor]:
        """Keys and values of the prompts, and each last token's final state, float32 (Q, d)."""
        shape = self.shape
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        context = ContextKV.empty(shape, lengths, self.dtype)
        token_ids = torch.from_numpy(np.concatenate(prompts).astype(np.int64))
        positions = np.concatenate([np.arange(length) for length in lengths])
        owners = np.repeat(np.arange(len(prompts)), lengths)
        longest = context.keys[0].shape[1]
        at = owners * (shape.key_heads * longest) + positions
        stride = np.full(len(at), longest)
        rows = Rows.of(lengths.tolist(), shape.heads)
        visible = positions + 1
        state = functional.embedding(token_ids, self.weights.embedding).float()
        change: Tensor | None = None
        for number, layer in enumerate(self._layers):
            normed = self._normalised(state, change, layer.attention_norm)
            keys, values = raw(context.keys[number]), raw(context.values[number])
            if number == shape.layers - 1:
                ends = np.cumsum(lengths) - 1
                last = torch.from_numpy(ends)
                self._place_keys(
                    layer, layer.key_value(normed), 0, positions, at, stride, keys, values
                )
                projected, state, positions = (
                    layer.query(normed[last]),
                    state[last],
                    positions[ends],
                )
                rows, visible = Rows.of([1] * len(prompts), shape.heads), lengths
            else:
                projected = layer.qkv(normed)
                self._place_keys(layer, projected, shape.heads, positions, at, stride, keys, values)
            mixed = self._attend(layer, projected, positions, rows, visible, context, number, None)
            change = self._finish(layer, state, mixed)
        return context, self._final(state, change)

    def step(
        self,
        token_ids: NDArray[np.int64],
        parents: NDArray[np.int64],
        counts: Sequence[int],
        context: ContextKV,
        beams: BeamKV,
    ) -> Tensor:
        """One generated position of every row → final states, float32 (rows, d).

        `token_ids` int64 (rows,); `parents` int64 (rows,), the row each continues; `counts`: rows
        of each prompt, in order. At least one row.
        """
        shape, number_of_rows = self.shape, len(token_ids)
        rows = Rows.of(counts, shape.heads)
        visible = np.repeat(context.lengths, counts)
        positions = visible + beams.steps
        beams.begin(parents)
        at = np.arange(number_of_rows) * shape.key_heads
        stride = np.ones(number_of_rows, dtype=np.int64)
        state = functional.embedding(torch.from_numpy(token_ids), self.weights.embedding).float()
        change: Tensor | None = None
        for number, layer in enumerate(self._layers):
            normed = self._normalised(state, change, layer.attention_norm)
            projected = layer.qkv(normed)
            generated = _Generated(beams.keys[number], beams.values[number], beams.ancestry)
            keys, values = generated.keys[beams.steps - 1], generated.values[beams.steps - 1]
            self._place_keys(layer, projected, shape.heads, positions, at, stride, keys, values)
            mixed = self._attend(
                layer, projected, positions, rows, visible, context, number, generated
            )
            change = self._finish(layer, state, mixed)
        return self._final(state, change)

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """Final states (rows, d) → float32 (rows, K_level), without the prior."""
        return self._level_output[level](hidden)

    @property
    def longest_prompt(self) -> int:
        """Tokens; the SID's codes need the remaining positions."""
        return self.shape.max_positions - self.weights.layout.levels

    def _rotations(self) -> tuple[Floats, Floats]:
        """Cosine and sine of every position, float32 (positions, D / 2)."""
        shape = self.shape
        exponents = torch.arange(0, shape.head_dim, 2).float()
        frequencies = shape.rope_theta ** (-exponents / shape.head_dim)
        angles = torch.arange(shape.max_positions)[:, None] * frequencies
        return angles.cos().numpy(), angles.sin().numpy()

    def _normalised(self, state: Tensor, change: Tensor | None, weight: Floats) -> Tensor:
        """Adds the change to the state; its norm in the computing type."""
        normed = roomy(len(state), state.shape[1], self.dtype)
        self._normalise_into(normed, state, change, weight)
        return normed

    def _final(self, state: Tensor, change: Tensor | None) -> Tensor:
        final = roomy(len(state), state.shape[1], state.dtype)
        self._normalise_into(final, state, change, self._final_norm)
        return final

    def _normalise_into(
        self, target: Tensor, state: Tensor, change: Tensor | None, weight: Floats
    ) -> None:
        epsilon = self.shape.epsilon
        if change is None:
            normalise(torch_team(), raw(state), weight, epsilon, raw(target))
        else:
            add_and_normalise(torch_team(), raw(state), raw(change), weight, epsilon, raw(target))

    def _halves(self, heads: Array) -> Array:
        """(…, n·D) or (…, n, D) → (…, n, 2, D / 2)."""
        return heads.reshape(len(heads), -1, 2, self.shape.head_dim // 2)

    def _place_keys(
        self,
        layer: _Layer,
        projected: Tensor,
        queries: int,
        positions: Indices,
        at: Indices,
        stride: Indices,
        keys: Array,
        values: Array,
    ) -> None:
        """Keys and values of `projected`, which follow its `queries` query heads, to where they
        are kept."""
        place_keys(
            torch_team(),
            self._halves(raw(projected)),
            queries,
            layer.key_norm,
            self.shape.epsilon,
            self._cosine,
            self._sine,
            positions,
            at,
            stride,
            keys.reshape(-1, 2, self.shape.head_dim // 2),
            values.reshape(-1, 2, self.shape.head_dim // 2),
        )

    def _attend(
        self,
        layer: _Layer,
        projected: Tensor,
        positions: Indices,
        rows: Rows,
        visible: Indices,
        context: ContextKV,
        number: int,
        generated: _Generated | None,
    ) -> Tensor:
        """Queries over the first `visible` positions of their prompts and their own generated
        ones → (rows, H·D)."""
        shape = self.shape
        size, count = shape.head_dim, len(positions)
        queries = torch.empty((rows.slots, size), dtype=self.dtype)
        place_queries(
            torch_team(),
            self._halves(raw(projected)),
            layer.query_norm,
            shape.epsilon,
            self._cosine,
            self._sine,
            positions,
            rows.first,
            rows.stride,
            raw(queries).reshape(-1, 2, size // 2),
        )
        if generated is None:
            nothing = raw(torch.empty((0, 0, shape.key_heads, size), dtype=self.dtype))
            generated = _Generated(nothing, nothing, np.zeros((0, count), dtype=np.int64))
        keys, values, ancestry = generated
        own = np.empty((count, shape.heads, len(ancestry)), dtype=np.float32)
        mixed = roomy(count, shape.heads * size, self.dtype)
        seen, target = raw(queries), raw(mixed)
        for prompts, span, slot, widest in rows.blocks:
            folded = slice(prompts.start * shape.key_heads, prompts.stop * shape.key_heads)
            longest = rounded(int(context.lengths[prompts].max()))
            slots = (prompts.stop - prompts.start) * shape.heads * widest
            asked = queries[slot : slot + slots].view(folded.stop - folded.start, -1, size)
            context_keys = context.keys[number][folded, :longest]
            scores = torch.bmm(asked, context_keys.transpose(1, 2))
            soften(
                torch_team(),
                raw(scores).reshape(-1, longest),
                seen,
                slot,
                span.start,
                span.stop,
                rows.first,
                rows.stride,
                visible,
                keys,
                ancestry,
                own,
            )
            taken = torch.bmm(scores, context.values[number][folded, :longest])
            blend(
                torch_team(),
                raw(taken).reshape(-1, size),
                slot,
                span.start,
                span.stop,
                rows.first,
                rows.stride,
                values,
                ancestry,
                own,
                target,
            )
        return mixed

    def _finish(self, layer: _Layer, state: Tensor, mixed: Tensor) -> Tensor:
        """Adds the attention's output to the state; the feed-forward's is left to be added."""
        normed = self._normalised(state, layer.attention_output(mixed), layer.mlp_norm)
        both = layer.gate_up(normed)
        gated = roomy(len(both), both.shape[1] // 2, self.dtype)
        gate(torch_team(), raw(both), raw(gated))
        return layer.down(gated)
