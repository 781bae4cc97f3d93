"""Runs one wave: several searches, each with its own width, filter and deadline, level by level.

A runner is one generation of the engine: weights and the trie they decode into. It is immutable;
hot swap replaces the whole runner.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoding.beam import Beam, check_filter
from decoding.engine import Hypotheses, Prompt
from decoding.errors import DeadlineExceeded
from decoding.native.kv import BeamKV
from decoding.native.transformer import Decoder
from decoding.scoring import check_prompt, level_log_probabilities, stacked_priors
from decoding.weights import DecoderWeights
from index.errors import ArtifactError, ConfigError
from index.live.trie import AnyTrie
from index.trie import Trie, TrieFilter

DEFAULT_BUDGET_ROWS = 2048
WARM_UP_WIDTH = 4


def default_threads() -> int:
    """Threads for single searches: half the cores.

    A second thread per core gains little on such small matrices, and one that has to wait for a
    busy core makes every product wait with it.
    """
    return max(1, (os.cpu_count() or 1) // 2)


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """One prompt to search. `deadline` as in Engine; `cancelled`: whether nobody waits any more;
    `trie`: the runner's own with changes, None for the runner's own."""

    prompt: Prompt
    beam_width: int
    filter: TrieFilter | None = None
    deadline: float | None = None
    cancelled: Callable[[], bool] = _never
    trie: AnyTrie | None = None


class Runner:
    """Weights and trie. Methods may be called from any thread."""

    def __init__(self, weights: DecoderWeights, trie: Trie) -> None:
        if weights.layout != trie.layout:
            raise ArtifactError(
                f"the weights decode {weights.layout.level_sizes} codes per level, "
                f"the trie has {trie.layout.level_sizes}; they are of different codecs"
            )
        self.decoder = Decoder(weights)
        self.trie = trie
        self.weights = weights

    def check(
        self,
        prompts: Sequence[Prompt],
        beam_width: int,
        filter: TrieFilter | None,
        trie: AnyTrie | None = None,
    ) -> None:
        """Raises ConfigError for a search that this runner cannot do."""
        if beam_width < 1:
            raise ConfigError(f"beam_width is {beam_width}, it must be at least 1")
        check_filter(self.trie if trie is None else trie, filter)
        for prompt in prompts:
            check_prompt(
                prompt,
                self.trie.layout.level_sizes,
                self.weights.vocabulary,
                self.decoder.longest_prompt,
            )

    def warm_up(self) -> None:
        """Load compiled kernels and touch the weights, with and without a filter."""
        prompt = Prompt(np.zeros(2, dtype=np.int32))
        everything = self.trie.filter(np.ones(self.trie.n_leaves, dtype=np.bool_))
        self.run([Search(prompt, WARM_UP_WIDTH), Search(prompt, 1, everything)])

    def search_batch(
        self,
        prompts: Sequence[Prompt],
        beam_width: int,
        filter: TrieFilter | None = None,
        *,
        budget_rows: int = DEFAULT_BUDGET_ROWS,
    ) -> list[Hypotheses]:
        """All prompts, in waves under the row budget, in this thread: evaluation and rollouts."""
        self.check(prompts, beam_width, filter)
        size = max(1, budget_rows // beam_width)
        # Prompts of like length share a wave, so that little is padded.
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].token_ids))
        results: dict[int, Hypotheses] = {}
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            found = self.run([Search(prompts[row], beam_width, filter) for row in rows])
            for row, result in zip(rows, found, strict=True):
                assert isinstance(result, Hypotheses)  # There is no deadline to miss.
                results[row] = result
        return [results[row] for row in range(len(prompts))]

    @torch.inference_mode()
    def run(self, searches: Sequence[Search]) -> list[Hypotheses | DeadlineExceeded | None]:
        """One result per search: hypotheses, DeadlineExceeded, or None where it was cancelled.

        The searches must have passed `check`; the row budget is the caller's business.
        """
        results: list[Hypotheses | DeadlineExceeded | None] = [None] * len(searches)
        live = [row for row, search in enumerate(searches) if _lives(search, row, results)]
        if live:
            found = self._decode([searches[row] for row in live])
            for row, result in zip(live, found, strict=True):
                results[row] = result
        return results

    def _decode(self, searches: Sequence[Search]) -> list[Hypotheses | DeadlineExceeded | None]:
        results: list[Hypotheses | DeadlineExceeded | None] = [None] * len(searches)
        beams = [
            Beam(search.trie or self.trie, search.beam_width, search.filter) for search in searches
        ]
        prompts = [search.prompt for search in searches]
        layout, device = self.trie.layout, self.decoder.device
        priors = stacked_priors(prompts, layout.level_sizes, device)
        context, hidden = self.decoder.prefill([prompt.token_ids for prompt in prompts])
        generated = BeamKV()
        for level, offset in enumerate(self.weights.sid_offset):
            counts = [len(beam) for beam in beams]
            prior = None if priors is None else _repeat(priors[level], counts)
            logits = self.decoder.level_logits(hidden, level)
            # The one wait for the device in each level.
            scores = level_log_probabilities(logits, prior).cpu().numpy()
            parents, codes = self._grow(searches, beams, results, scores, counts)
            if not len(codes):
                break
            if level < layout.levels - 1:
                hidden = self.decoder.step(
                    torch.from_numpy(codes + offset).to(device),
                    torch.from_numpy(parents).to(device),
                    [len(beam) for beam in beams],
                    context,
                    generated,
                )
        for row, (search, beam) in enumerate(zip(searches, beams, strict=True)):
            if results[row] is None and not search.cancelled():
                results[row] = beam.hypotheses()
        return results

    def _grow(
        self,
        searches: Sequence[Search],
        beams: Sequence[Beam],
        results: list[Hypotheses | DeadlineExceeded | None],
        scores: NDArray[np.float32],
        counts: Sequence[int],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """One level down for every beam that somebody still waits for → parents' rows in the wave
        and codes, both int64 (rows,)."""
        parents: list[NDArray[np.int64]] = []
        codes: list[NDArray[np.int64]] = []
        start = 0
        for row, (search, beam, count) in enumerate(zip(searches, beams, counts, strict=True)):
            if count and _lives(search, row, results):
                step = beam.grow(scores[start : start + count])
                parents.append(step.parents + start)
                codes.append(step.codes)
            else:
                beam.drop()
            start += count
        empty = np.zeros(0, dtype=np.int64)
        return np.concatenate(parents or [empty]), np.concatenate(codes or [empty])


def _lives(search: Search, row: int, results: list[Hypotheses | DeadlineExceeded | None]) -> bool:
    """Whether to go on; writes DeadlineExceeded into `results` when time is up."""
    if search.cancelled():
        return False
    late = 0.0 if search.deadline is None else time.monotonic() - search.deadline
    if late > 0:
        results[row] = DeadlineExceeded(f"the search was {late * 1000:.0f} ms late and was dropped")
        return False
    return True


def _repeat(prior: Tensor, counts: Sequence[int]) -> Tensor:
    """(prompts, K) → (rows, K)."""
    repeats = torch.tensor(counts, device=prior.device)
    return torch.repeat_interleave(prior, repeats, dim=0, output_size=sum(counts))
