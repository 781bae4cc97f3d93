"""Runs one wave: several searches, each with its own width, filter and deadline, level by level.

A runner is one generation of the engine: weights and the trie they decode into. It is immutable;
hot swap replaces the whole runner.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.beam import Beam, Growth, check_filter, grow_all
from decoding.engine import Hypotheses, Prompt
from decoding.errors import DeadlineExceeded
from decoding.expand import base_of
from decoding.native.kv import BeamKV
from decoding.native.transformer import Decoder
from decoding.scoring import check_prompt, check_search, stacked_priors
from decoding.team import torch_team
from decoding.weights import DecoderWeights
from index.errors import ArtifactError
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


class WaveRunner(Protocol):
    """What the runners of all devices can do."""

    def check(
        self,
        prompts: Sequence[Prompt],
        beam_width: int,
        filter: TrieFilter | None,
        trie: AnyTrie | None = None,
    ) -> None: ...

    def run(self, searches: Sequence[Search]) -> list[Hypotheses | DeadlineExceeded | None]: ...


class Runner:
    """Weights and trie. Methods may be called from any thread."""

    def __init__(self, weights: DecoderWeights, trie: Trie, *, measured: bool = True) -> None:
        """`measured` False: results repeat from process to process, see `Decoder`."""
        if weights.layout != trie.layout:
            raise ArtifactError(
                f"the weights decode {weights.layout.level_sizes} codes per level, "
                f"the trie has {trie.layout.level_sizes}; they are of different codecs"
            )
        self.decoder = Decoder(weights, measured=measured)
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
        searched = self.trie if trie is None else trie
        check_search(self.trie.layout, searched.layout, beam_width)
        check_filter(searched, filter)
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
        return search_in_waves(self, prompts, beam_width, filter, budget_rows)

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
        layout = self.trie.layout
        priors = stacked_priors(prompts, layout.level_sizes)
        context, hidden = self.decoder.prefill([prompt.token_ids for prompt in prompts])
        generated = self._room(beams)
        for level, offset in enumerate(self.weights.sid_offset):
            starts = [0, *np.cumsum([len(beam) for beam in beams])[:-1].tolist()]
            for row, (search, beam) in enumerate(zip(searches, beams, strict=True)):
                if len(beam) and not _lives(search, row, results):
                    beam.drop()
            logits = self.decoder.level_logits(hidden, level).numpy()
            prior = None if priors is None else priors[level]
            parents, codes = _grow(beams, logits, prior, starts)
            if not len(codes):
                break
            if level < layout.levels - 1:
                counts = [len(beam) for beam in beams]
                hidden = self.decoder.step(codes + offset, parents, counts, context, generated)
        for row, (search, beam) in enumerate(zip(searches, beams, strict=True)):
            if results[row] is None and not search.cancelled():
                results[row] = beam.hypotheses()
        return results

    def _room(self, beams: Sequence[Beam]) -> BeamKV:
        """For the generated positions of all beams; the last level's codes are never read back."""
        rows = sum(min(beam.width, beam.trie.n_leaves) for beam in beams)
        steps = self.trie.layout.levels - 1
        return BeamKV(self.weights.shape, steps, rows, self.decoder.dtype)


def search_in_waves(
    runner: WaveRunner,
    prompts: Sequence[Prompt],
    beam_width: int,
    filter: TrieFilter | None,
    budget_rows: int,
) -> list[Hypotheses]:
    """All prompts, in waves of at most `budget_rows` beams or of one search, in this thread."""
    runner.check(prompts, beam_width, filter)
    size = max(1, budget_rows // beam_width)
    # Prompts of like length share a wave, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].token_ids))
    results: dict[int, Hypotheses] = {}
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        found = runner.run([Search(prompts[row], beam_width, filter) for row in rows])
        for row, result in zip(rows, found, strict=True):
            assert isinstance(result, Hypotheses)  # There is no deadline to miss.
            results[row] = result
    return [results[row] for row in range(len(prompts))]


def make_runner(weights: DecoderWeights, trie: Trie) -> Runner:
    """The runner for the device that the weights are on."""
    if weights.device.type == "cuda":
        # Needs Triton, which machines without a GPU need not have.
        from decoding.cuda.runner import CudaRunner

        return cast(Runner, CudaRunner(weights, trie))
    return Runner(weights, trie)


def _grow(
    beams: Sequence[Beam],
    logits: NDArray[np.float32],
    priors: NDArray[np.float32] | None,
    starts: Sequence[int],
) -> Growth:
    """`grow_all`, also of beams whose tries have different bases, as while one is replaced."""
    by_base: dict[int, list[int]] = {}
    for row, beam in enumerate(beams):
        by_base.setdefault(id(base_of(beam.trie)), []).append(row)
    if len(by_base) == 1:
        return grow_all(beams, logits, priors, torch_team(), starts)
    for rows in by_base.values():
        own = None if priors is None else priors[rows]
        places = [starts[row] for row in rows]
        grow_all([beams[row] for row in rows], logits, own, torch_team(), places)
    grown = [
        (beam.steps[-1], start) for beam, start in zip(beams, starts, strict=True) if len(beam)
    ]
    parents, codes = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return Growth(
        np.concatenate([parents, *(step.parents + start for step, start in grown)]),
        np.concatenate([codes, *(step.codes for step, _ in grown)]),
    )


def _lives(search: Search, row: int, results: list[Hypotheses | DeadlineExceeded | None]) -> bool:
    """Whether to go on; writes DeadlineExceeded into `results` when time is up."""
    if search.cancelled():
        return False
    late = 0.0 if search.deadline is None else time.monotonic() - search.deadline
    if late > 0:
        results[row] = DeadlineExceeded(f"the search was {late * 1000:.0f} ms late and was dropped")
        return False
    return True
