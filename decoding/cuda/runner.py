"""Runs waves on a CUDA device: the same searches and results as decoding/native/runner.py.

A wave is cut into parts of like shape; each part is one replay of its bucket's CUDA graph, captured
when the bucket is first used. Searches in another trie than the runner's own, such as one with
added SIDs, take a slower exact path, where the host chooses each level.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.beam import Beam, check_filter
from decoding.cuda.bucket import Bucket, parts
from decoding.cuda.expand import DeviceTrie, Expander
from decoding.cuda.filters import DeviceFilters
from decoding.cuda.host_expand import HostExpander
from decoding.cuda.trace import Trace
from decoding.cuda.transformer import CudaDecoder
from decoding.cuda.wave import Inputs, Wave, decode
from decoding.engine import Hypotheses, Prompt
from decoding.errors import DeadlineExceeded
from decoding.native.runner import DEFAULT_BUDGET_ROWS, WARM_UP_WIDTH, Search, search_in_waves
from decoding.scoring import check_prompt, check_search
from decoding.weights import DecoderWeights
from index.errors import ArtifactError
from index.live.trie import AnyTrie, LiveTrie
from index.trie import Trie, TrieFilter

MAX_GRAPHS = 64
"""Buckets whose graphs are kept; the one used longest ago goes first."""

Outcome = Hypotheses | DeadlineExceeded | None


class CudaRunner:
    """Weights and trie on a CUDA device. Methods may be called from any thread; waves run one after
    the other.

    `graphs` false runs each wave operation by operation: for devices without graphs, and to find
    faults. `warm_up_buckets`: shapes whose graphs `warm_up` captures.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        trie: Trie,
        *,
        graphs: bool = True,
        warm_up_buckets: Sequence[Bucket] = (),
    ) -> None:
        if weights.layout != trie.layout:
            raise ArtifactError(
                f"the weights decode {weights.layout.level_sizes} codes per level, "
                f"the trie has {trie.layout.level_sizes}; they are of different codecs"
            )
        self.decoder = CudaDecoder(weights)
        self.trie = trie
        self.weights = weights
        self._device_trie = DeviceTrie.from_trie(trie, weights.device)
        self._filters = DeviceFilters(weights.device)
        self._graphs = graphs and weights.device.type == "cuda"
        self._pool: Any = None
        self._waves: OrderedDict[Bucket, Wave] = OrderedDict()
        self._warm_up_buckets = tuple(warm_up_buckets)
        self._lock = threading.Lock()

    @property
    def longest_prompt(self) -> int:
        """Tokens; the SID's codes need the remaining positions."""
        return self.weights.shape.max_positions - self.weights.layout.levels

    def check(
        self,
        prompts: Sequence[Prompt],
        beam_width: int,
        filter: TrieFilter | None,
        trie: AnyTrie | None = None,
    ) -> None:
        """Raises ConfigError for a search that this runner cannot do."""
        searched = self.trie if trie is None else trie
        check_search(self.trie.layout, searched.layout, beam_width)
        check_filter(searched, filter)
        for prompt in prompts:
            check_prompt(
                prompt, self.trie.layout.level_sizes, self.weights.vocabulary, self.longest_prompt
            )

    def warm_up(self) -> None:
        """Compile and load the kernels, and capture the graphs asked for."""
        prompt = Prompt(np.zeros(2, dtype=np.int32))
        everything = self.trie.filter(np.ones(self.trie.n_leaves, dtype=np.bool_))
        self.run([Search(prompt, WARM_UP_WIDTH), Search(prompt, 1, everything)])
        for bucket in self._warm_up_buckets:
            prompt = Prompt(np.zeros(min(bucket.length, self.longest_prompt), dtype=np.int32))
            with self._lock:
                self._decode_part([Search(prompt, bucket.width)] * bucket.queries, bucket)

    def search_batch(
        self,
        prompts: Sequence[Prompt],
        beam_width: int,
        filter: TrieFilter | None = None,
        *,
        budget_rows: int = DEFAULT_BUDGET_ROWS,
    ) -> list[Hypotheses]:
        """All prompts, in waves under the row budget, in this thread: evaluation and rollouts."""
        return search_in_waves(self, prompts, beam_width, filter, budget_rows)

    def run(self, searches: Sequence[Search]) -> list[Outcome]:
        """One result per search: hypotheses, DeadlineExceeded, or None where it was cancelled.

        Deadlines and cancellations are looked at before each part of the wave, which takes
        milliseconds, and after it. The searches must have passed `check`; the row budget is the
        caller's business.
        """
        results: list[Outcome] = [None] * len(searches)
        plain = [row for row, search in enumerate(searches) if self._on_device(search.trie)]
        changed = [row for row, search in enumerate(searches) if not self._on_device(search.trie)]
        for on_host, chosen in ((False, plain), (True, changed)):
            if not chosen:
                continue
            for places, bucket in self._parts([searches[row] for row in chosen]):
                rows = [chosen[place] for place in places]
                with self._lock:
                    self._run_part(searches, rows, bucket, on_host, results)
        return results

    def _parts(self, searches: Sequence[Search]) -> list[tuple[list[int], Bucket]]:
        return parts(
            [self._width(search) for search in searches],
            [len(search.prompt.token_ids) for search in searches],
            self.trie.layout.levels - 1,
            self.weights.shape.max_positions,
        )

    def _on_device(self, trie: AnyTrie | None) -> bool:
        """Whether the device's trie has the SIDs of this one, no more and no fewer."""
        if isinstance(trie, LiveTrie):
            return trie.base is self.trie and not len(trie.added_keys)
        return trie is None or trie is self.trie

    def _width(self, search: Search) -> int:
        """No beam is wider than there are SIDs."""
        trie = self.trie if search.trie is None else search.trie
        return max(1, min(search.beam_width, trie.n_leaves))

    @torch.inference_mode()
    def _run_part(
        self,
        searches: Sequence[Search],
        rows: Sequence[int],
        bucket: Bucket,
        on_host: bool,
        results: list[Outcome],
    ) -> None:
        live = [row for row in rows if _lives(searches[row], row, results)]
        if not live:
            return
        decode_part = self._decode_on_host if on_host else self._decode_part
        found = decode_part([searches[row] for row in live], bucket)
        for row, result in zip(live, found, strict=True):
            if _lives(searches[row], row, results):
                results[row] = result

    @torch.inference_mode()
    def _decode_part(self, searches: Sequence[Search], bucket: Bucket) -> list[Hypotheses]:
        wave = self._wave(bucket)
        # Held until the results are here: the graph reads them by address.
        bitmaps = [
            None if search.filter is None else self._filters.bitmaps(search.filter)
            for search in searches
        ]
        widths = [self._width(search) for search in searches]
        wave.inputs.write([search.prompt for search in searches], widths, bitmaps)
        table = wave.run()
        return [
            _hypotheses(table[:, row], width, search.beam_width)
            for row, (search, width) in enumerate(zip(searches, widths, strict=True))
        ]

    def _wave(self, bucket: Bucket) -> Wave:
        wave = self._waves.pop(bucket, None)
        if wave is None:
            if len(self._waves) >= MAX_GRAPHS:
                self._waves.popitem(last=False)
            if self._graphs and not self._waves:
                # A pool ends with the last of its graphs.
                self._pool = torch.cuda.graph_pool_handle()
            wave = Wave(self.decoder, self.expander(bucket), bucket, self._pool)
        self._waves[bucket] = wave
        return wave

    def expander(self, bucket: Bucket) -> Expander:
        """A new one for waves of a bucket's shape."""
        return Expander(
            self._device_trie,
            bucket.queries,
            bucket.width,
            self.trie.layout.level_sizes,
            self.weights.device,
        )

    def _decode_on_host(self, searches: Sequence[Search], bucket: Bucket) -> list[Hypotheses]:
        device, layout = self.weights.device, self.trie.layout
        beams = [
            Beam(
                self.trie if search.trie is None else search.trie, search.beam_width, search.filter
            )
            for search in searches
        ]
        inputs = Inputs(bucket, layout.level_sizes, device)
        widths = [self._width(search) for search in searches]
        inputs.write([search.prompt for search in searches], widths, [])
        trace = Trace(bucket.queries, bucket.width, layout.levels, device)
        decode(
            self.decoder,
            inputs,
            trace,
            HostExpander(beams, bucket.queries, bucket.width, device),
        )
        return [beam.hypotheses() for beam in beams]


def _hypotheses(table: NDArray[np.int32], width: int, beam_width: int) -> Hypotheses:
    """One query's columns of the table, int32 (3·L + 2, W)."""
    levels = (len(table) - 2) // 3
    count = int(np.count_nonzero(table[3 * levels, :width] >= 0))
    kept = table[:, :count]
    codes, level_scores, branching = (
        np.ascontiguousarray(kept[start : start + levels].T)
        for start in range(0, 3 * levels, levels)
    )
    return Hypotheses(
        kept[3 * levels].astype(np.uint32).astype(np.int64),
        codes,
        kept[3 * levels + 1].copy().view(np.float32),
        level_scores.view(np.float32),
        branching,
        count == beam_width,
    )


def _lives(search: Search, row: int, results: list[Outcome]) -> bool:
    """Whether somebody waits for it; writes DeadlineExceeded into `results` when time is up."""
    if search.cancelled():
        return False
    late = 0.0 if search.deadline is None else time.monotonic() - search.deadline
    if late > 0:
        results[row] = DeadlineExceeded(f"the search was {late * 1000:.0f} ms late and was dropped")
        return False
    return True
