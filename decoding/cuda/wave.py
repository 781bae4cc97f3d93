"""One wave on the device, in the shape of its bucket: inputs at fixed addresses, the whole decode,
and the CUDA graph of it.

A graph holds the prefill and all levels, selection included. A wave is then one copy to the device,
one launch, one copy back, and the only wait is for that last copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoding.cuda.bucket import Bucket
from decoding.cuda.trace import Selection, Trace
from decoding.cuda.transformer import BeamKV, ContextKV, CudaDecoder
from decoding.engine import Prompt


class Expanding(Protocol):
    """What chooses a level's prefixes; see decoding/cuda/expand.py."""

    def expand(
        self,
        level: int,
        nodes: Tensor,
        scores: Tensor,
        logits: Tensor,
        prior: Tensor | None,
        filter_table: Tensor,
        widths: Tensor,
    ) -> Selection: ...


class Inputs:
    """What a wave reads, at fixed addresses: token ids int32 (Q, T), lengths and widths int32 (Q,),
    device addresses of filters' bitmaps int64 (Q, L), and priors float32 (Q, K_l) per level."""

    def __init__(self, bucket: Bucket, level_sizes: Sequence[int], device: torch.device) -> None:
        queries, length, levels = bucket.queries, bucket.length, len(level_sizes)
        self.bucket = bucket
        words = 2 * queries * levels + 2 * queries + queries * length
        on_device = device.type == "cuda"
        self._host = torch.zeros(words, dtype=torch.int32, pin_memory=on_device)
        self._words = torch.zeros(words, dtype=torch.int32, device=device)
        self._host_parts = _parts(self._host, queries, levels)
        self.filter_table, self.lengths, self.widths, self.token_ids = _parts(
            self._words, queries, levels
        )
        size = queries * sum(level_sizes)
        self._host_prior = torch.zeros(size, dtype=torch.float32, pin_memory=on_device)
        self._prior = torch.zeros(size, dtype=torch.float32, device=device)
        self._has_prior = False
        self.priors = _by_level(self._prior, queries, level_sizes)
        self._host_priors = _by_level(self._host_prior, queries, level_sizes)

    def write(
        self,
        prompts: Sequence[Prompt],
        widths: Sequence[int],
        bitmaps: Sequence[Sequence[Tensor] | None],
    ) -> None:
        """Fill in a wave of at most Q prompts; what is left over becomes queries of one token and
        width 1 that nobody reads."""
        table, lengths, all_widths, token_ids = (part.numpy() for part in self._host_parts)
        table[:], lengths[:], all_widths[:] = 0, 1, 1
        token_ids[:] = 0
        for row, (prompt, width) in enumerate(zip(prompts, widths, strict=True)):
            lengths[row], all_widths[row] = len(prompt.token_ids), width
            token_ids[row, : len(prompt.token_ids)] = prompt.token_ids
        for row, levels in enumerate(bitmaps):
            if levels is not None:
                table[row] = [bits.data_ptr() for bits in levels]
        self._words.copy_(self._host, non_blocking=True)
        has_prior = any(prompt.level_prior is not None for prompt in prompts)
        if has_prior or self._has_prior:
            self._write_priors(prompts)
        self._has_prior = has_prior

    def _write_priors(self, prompts: Sequence[Prompt]) -> None:
        self._host_prior.zero_()
        for row, prompt in enumerate(prompts):
            for level, prior in enumerate(prompt.level_prior or ()):
                self._host_priors[level].numpy()[row] = prior
        self._prior.copy_(self._host_prior, non_blocking=True)


def _parts(words: Tensor, queries: int, levels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = [2 * queries * levels, queries, queries]
    table, lengths, widths, tokens = words.split([*sizes, len(words) - sum(sizes)])
    # The table comes first: its addresses must be aligned to eight bytes.
    return (
        table.view(torch.int64).view(queries, levels),
        lengths,
        widths,
        tokens.view(queries, -1),
    )


def _by_level(flat: Tensor, queries: int, level_sizes: Sequence[int]) -> list[Tensor]:
    parts = flat.split([queries * size for size in level_sizes])
    return [part.view(queries, size) for part, size in zip(parts, level_sizes, strict=True)]


def decode(decoder: CudaDecoder, inputs: Inputs, trace: Trace, expander: Expanding) -> Tensor:
    """The whole decode of a wave → the trace's table."""
    shape, bucket, device = decoder.shape, inputs.bucket, decoder.device
    levels = decoder.weights.layout.levels
    rows = bucket.queries * bucket.width
    context = ContextKV.empty(shape, bucket.length, inputs.lengths, decoder.dtype)
    beams = BeamKV.empty(shape, levels - 1, rows, decoder.dtype, device)
    hidden = decoder.prefill(inputs.token_ids, context)
    trace.begin()
    for level, sid_offset in enumerate(decoder.weights.sid_offset):
        logits = decoder.level_logits(hidden, level)
        chosen = expander.expand(
            level,
            trace.nodes,
            trace.scores,
            logits.view(bucket.queries, -1, logits.shape[1]),
            inputs.priors[level],
            inputs.filter_table,
            inputs.widths,
        )
        trace.record(chosen, sid_offset)
        if level < levels - 1:
            hidden = decoder.step(trace.token_ids, level, trace.ancestry, context, beams)
    return trace.table


class Wave:
    """The decode of one bucket. Not for two threads at once.

    `pool`: the memory pool that the graphs of a runner share; None runs without a graph.
    """

    def __init__(
        self, decoder: CudaDecoder, expander: Expanding, bucket: Bucket, pool: Any | None
    ) -> None:
        layout = decoder.weights.layout
        self.bucket = bucket
        self.inputs = Inputs(bucket, layout.level_sizes, decoder.device)
        self._decoder, self._expander = decoder, expander
        self._trace = Trace(bucket.queries, bucket.width, layout.levels, decoder.device)
        self._on_device = decoder.device.type == "cuda"
        table = self._trace.table
        self._host = torch.empty(table.shape, dtype=table.dtype, pin_memory=self._on_device)
        self._pool = pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._table = table

    def run(self) -> NDArray[np.int32]:
        """Decode what the inputs hold → the table, int32 (3·L + 2, Q, W), valid until the next
        run."""
        if self._pool is not None and self._graph is None:
            self._capture()
        if self._graph is None:
            self._table = decode(self._decoder, self.inputs, self._trace, self._expander)
        else:
            self._graph.replay()
        self._host.copy_(self._table, non_blocking=True)
        if self._on_device:
            # The only wait of a wave.
            torch.cuda.current_stream().synchronize()
        return self._host.numpy().reshape(-1, self.bucket.queries, self.bucket.width)

    def _capture(self) -> None:
        # The first run compiles and loads kernels, which a capture does not allow.
        decode(self._decoder, self.inputs, self._trace, self._expander)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._table = decode(self._decoder, self.inputs, self._trace, self._expander)
        self._graph = graph
