"""Inference of the decoder: prefill once a prompt, then one position a level for all beams.

The inference twin of models/transformer.py (a parity test ties them). Rows of a wave are ragged:
beams of prompt 0, then of prompt 1, …, any number each. The matrix products see the rows as they
are; only attention lays them out as (prompts, widest beam), where equal widths cost nothing.

Shapes: Q prompts, T prompt length, W widest beam, H heads, C key heads, G = H / C, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from decoding.native.kv import BeamKV, ContextKV
from decoding.weights import DecoderWeights, LayerWeights


class Rows(NamedTuple):
    """How rows lie in (Q, W): `slots` int64 (Q·W,) the row of each slot (0 where there is none),
    `taken` int64 (rows,) the slot of each row; both None when every beam has W rows."""

    prompts: int
    widest: int
    slots: Tensor | None
    taken: Tensor | None

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device) -> Rows:
        widest = max(counts)
        if min(counts) == widest:
            return cls(len(counts), widest, None, None)
        lanes = np.arange(widest)
        taken = np.flatnonzero(lanes[None] < np.asarray(counts)[:, None])
        slots = np.zeros(len(counts) * widest, dtype=np.int64)
        slots[taken] = np.arange(len(taken))
        on_device = [torch.from_numpy(part).to(device) for part in (slots, taken)]
        return cls(len(counts), widest, *on_device)

    def lay_out(self, rows: Tensor) -> Tensor:
        """(rows, …) → (Q·W, …)."""
        return rows if self.slots is None else rows[self.slots]

    def gather(self, slots: Tensor) -> Tensor:
        """(Q·W, …) → (rows, …)."""
        return slots if self.taken is None else slots[self.taken]


class Decoder:
    """Stateless but for its weights; safe to use from several threads."""

    def __init__(self, weights: DecoderWeights) -> None:
        self.weights = weights
        self.shape = weights.shape
        self.dtype = weights.embedding.dtype
        self.device = weights.device
        self.group = self.shape.heads // self.shape.key_heads
        self._cosine, self._sine = self._rotations()

    def prefill(self, prompts: Sequence[NDArray[np.int32]]) -> tuple[ContextKV, Tensor]:
        """Keys and values of the prompts, and the final state of each last token, (Q, d)."""
        lengths = np.array([len(prompt) for prompt in prompts])
        padded = np.zeros((len(prompts), int(lengths.max())), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = prompt
        token_ids = torch.from_numpy(padded).to(self.device)
        length_of = torch.from_numpy(lengths).to(self.device)
        context = ContextKV([], [], length_of, self._padding_bias(lengths, padded.shape[1]))
        positions = torch.arange(padded.shape[1], device=self.device)
        # Padding lies to the right, where a causal query never looks.
        blocked = torch.full((len(positions), len(positions)), self._minimum, dtype=self.dtype)
        causal = blocked.triu_(1).to(self.device)
        state = functional.embedding(token_ids, self.weights.embedding)
        last = (torch.arange(len(prompts), device=self.device), length_of - 1)
        for number, layer in enumerate(self.weights.layers):
            query, key, value = self._project(layer, state, positions)
            context.keys.append(key.permute(0, 2, 3, 1).flatten(0, 1).contiguous())
            context.values.append(value.transpose(1, 2).flatten(0, 1).contiguous())
            if number == self.shape.layers - 1:
                # Nobody reads the last layer's other states.
                query, state = query[last][:, None], state[last][:, None]
                bias = causal[length_of - 1][:, None, None]
            else:
                bias = causal[None, None]
            mixed = self._attend_context(query, context.keys[-1], context.values[-1], bias)
            state = self._finish(layer, state, mixed)
        return context, self._normalise(state[:, 0], self.weights.final_norm)

    def step(
        self,
        token_ids: Tensor,
        parents: Tensor,
        counts: Sequence[int],
        context: ContextKV,
        beams: BeamKV,
    ) -> Tensor:
        """One generated position of every row → final states (rows, d).

        `token_ids` int64 (rows,); `parents` int64 (rows,), the row each continues; `counts`: rows
        of each prompt, in order. At least one row.
        """
        rows = Rows.of(counts, self.device)
        position = context.lengths + len(beams.steps)
        positions = torch.repeat_interleave(
            position, torch.tensor(counts, device=self.device), output_size=len(token_ids)
        )
        beams.begin(parents)
        state = functional.embedding(token_ids, self.weights.embedding)
        ancestry = [rows.lay_out(step) for step in beams.ancestry]
        for number, layer in enumerate(self.weights.layers):
            query, key, value = self._project(layer, state, positions)
            beams.append(key, value)
            generated = [step[number] for step in beams.steps]
            mixed = self._attend_beams(rows, query, number, context, generated, ancestry)
            state = self._finish(layer, state, mixed)
        return self._normalise(state, self.weights.final_norm)

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """Final states (rows, d) → float32 (rows, K_level), without the prior."""
        return functional.linear(hidden.float(), self.weights.level_output[level])

    @property
    def longest_prompt(self) -> int:
        """Tokens; the SID's codes need the remaining positions."""
        return self.shape.max_positions - self.weights.layout.levels

    @property
    def _minimum(self) -> float:
        return torch.finfo(self.dtype).min / 2

    def _rotations(self) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine of every position, (positions, D): rotation is
        x·cosine + roll(x)·sine, where roll swaps the halves."""
        shape = self.shape
        exponents = torch.arange(0, shape.head_dim, 2, device=self.device).float()
        frequencies = shape.rope_theta ** (-exponents / shape.head_dim)
        angles = torch.arange(shape.max_positions, device=self.device)[:, None] * frequencies
        cosine, sine = angles.cos(), angles.sin()
        both = torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)
        return both[0].to(self.dtype), both[1].to(self.dtype)

    def _padding_bias(self, lengths: NDArray[np.int64], longest: int) -> Tensor | None:
        if int(lengths.min()) == longest:
            return None
        padding = torch.from_numpy(np.arange(longest)[None] >= lengths[:, None])
        bias = torch.zeros(padding.shape, dtype=self.dtype).masked_fill_(padding, self._minimum)
        return bias[:, None, None].to(self.device)

    def _normalise(self, state: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(state, weight.shape, weight, self.shape.epsilon)

    def _project(
        self, layer: LayerWeights, state: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """State (…, d) → rotated queries (…, H, D), rotated keys and values (…, C, D)."""
        shape = self.shape
        projected = functional.linear(self._normalise(state, layer.attention_norm), layer.qkv)
        heads = projected.unflatten(-1, (-1, shape.head_dim))
        turning = heads[..., : shape.heads + shape.key_heads, :]
        turning = functional.rms_norm(turning, (shape.head_dim,), None, shape.epsilon)
        turning = turning * layer.qk_norm
        cosine, sine = self._cosine[positions].unsqueeze(-2), self._sine[positions].unsqueeze(-2)
        turned = torch.addcmul(turning * cosine, turning.roll(shape.head_dim // 2, -1), sine)
        value = heads[..., shape.heads + shape.key_heads :, :]
        return turned[..., : shape.heads, :], turned[..., shape.heads :, :], value

    def _attend_context(
        self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Queries (Q, W, H, D) over contexts → (Q, W, H·D)."""
        prompts, width, _, size = query.shape
        folded = self._fold(query)
        scores = torch.bmm(folded, keys).view(prompts, self.shape.heads, width, -1)
        weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
        mixed = torch.bmm(weights.view(prompts * self.shape.key_heads, -1, keys.shape[-1]), values)
        return mixed.view(prompts, -1, width, size).transpose(1, 2).flatten(2)

    def _attend_beams(
        self,
        rows: Rows,
        query: Tensor,
        number: int,
        context: ContextKV,
        generated: Sequence[tuple[Tensor, Tensor]],
        ancestry: Sequence[Tensor],
    ) -> Tensor:
        """Queries (rows, H, D) over context and own generated positions → (rows, H·D)."""
        prompts, widest, heads = rows.prompts, rows.widest, self.shape.heads
        query = rows.lay_out(query).view(prompts, widest, heads, -1)
        folded = self._fold(query)
        longest = context.keys[number].shape[-1]
        scores = torch.bmm(folded, context.keys[number]).view(prompts, heads, widest, longest)
        if context.bias is not None:
            scores = scores + context.bias
        grouped = folded.view(prompts, -1, self.group, widest, folded.shape[-1])
        own_keys = [
            self._beam_view(keys[at], prompts)
            for (keys, _), at in zip(generated, ancestry, strict=True)
        ]
        own = [(grouped * key).sum(-1).view(prompts, heads, widest, 1) for key in own_keys]
        weights = torch.softmax(torch.cat((scores, *own), dim=-1), dim=-1)
        over_context = weights[..., :longest].reshape(folded.shape[0], -1, longest)
        mixed = torch.bmm(over_context, context.values[number]).view(grouped.shape)
        for step, ((_, values), at) in enumerate(zip(generated, ancestry, strict=True)):
            share = weights[..., longest + step].view(*grouped.shape[:-1], 1)
            mixed = torch.addcmul(mixed, share, self._beam_view(values[at], prompts))
        mixed = mixed.view(prompts, heads, widest, -1).transpose(1, 2).flatten(2).flatten(0, 1)
        return rows.gather(mixed)

    def _fold(self, query: Tensor) -> Tensor:
        """(Q, W, H, D) → (Q·C, G·W, D): the heads of a group become rows of their key head."""
        batch, size = query.shape[0] * self.shape.key_heads, query.shape[-1]
        return query.transpose(1, 2).reshape(batch, -1, size)

    def _beam_view(self, gathered: Tensor, prompts: int) -> Tensor:
        """(Q·W, C, D) → (Q, C, 1, W, D)."""
        return gathered.view(prompts, -1, *gathered.shape[1:]).transpose(1, 2).unsqueeze(2)

    def _finish(self, layer: LayerWeights, state: Tensor, mixed: Tensor) -> Tensor:
        """Attention output and feed-forward, each added to the state."""
        state = state + functional.linear(mixed, layer.attention_output)
        both = functional.linear(self._normalise(state, layer.mlp_norm), layer.gate_up)
        gate, up = both.chunk(2, dim=-1)
        return state + functional.linear(functional.silu(gate) * up, layer.down)
