"""The engine's contract: token ids in, SIDs out.

Prompts, tokenizers, users and items are none of its business. The scoring rule, for every engine:
the score of a SID is Σ over levels of log softmax(logits + prior) over that level's whole codebook,
beams are kept by exact top-k among prefixes that lead to an allowed leaf, ties break by SID order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index.live.trie import AnyTrie
from index.trie import TrieFilter


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """`token_ids` int32 (T,). `level_prior`: one finite float32 (K_l,) per level, added to the
    level's logits before the softmax."""

    token_ids: NDArray[np.int32]
    level_prior: tuple[NDArray[np.float32], ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Hypotheses:
    """One prompt's SIDs, best first, n ≤ beam width.

    leaves int64 (n,); codes int32 (n, L); scores float32 (n,); level_scores float32 (n, L), whose
    sums are the scores; branching int32 (n, L), how many allowed children each step chose from.
    `complete` is false when fewer allowed SIDs were found than asked for. `began`, `ended`:
    `time.monotonic()` when the engine turned to the prompt, after it had waited, and when it was
    done; NaN where nobody took them.
    """

    leaves: NDArray[np.int64]
    codes: NDArray[np.int32]
    scores: NDArray[np.float32]
    level_scores: NDArray[np.float32]
    branching: NDArray[np.int32]
    complete: bool
    began: float = math.nan
    ended: float = math.nan

    def __len__(self) -> int:
        return len(self.leaves)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start, and the present. Rows are beams: Σ beam_width of prompts."""

    queued_prompts: int
    queued_rows: int
    running_prompts: int
    waves: int
    prompts: int
    rows: int
    expired: int
    shed: int
    cancelled: int
    failed: int
    swaps: int
    wave_s: float
    """Recent seconds per wave, exponentially smoothed."""
    restarts: int = 0
    """How often a process that computes ended and was started again."""
    restarting: bool = False


class Engine(Protocol):
    """What turns prompts into hypotheses. All methods are called on one event loop."""

    async def search(
        self,
        prompts: Sequence[Prompt],
        beam_width: int,
        filter: TrieFilter | None = None,
        deadline: float | None = None,
        *,
        generation: Any = None,
        trie: AnyTrie | None = None,
    ) -> list[Hypotheses]:
        """One result per prompt, all from the same weights and trie.

        `deadline` is a `time.monotonic()` value. `generation` is one as `swap` takes it, live or
        not: who pinned a generation names it, so that a swap in between changes nothing for them;
        None means the live one. `trie` is the generation's own with changes to the catalogue;
        None means without. Raises DeadlineExceeded, as soon as the deadline passes,
        EngineOverloaded, EngineClosed, EngineRestarting, ConfigError for prompts or filters that
        do not fit.
        """
        ...

    async def swap(self, generation: Any, /) -> None:
        """Make another loaded generation the live one; running searches end on theirs."""
        ...

    def stats(self) -> EngineStats: ...

    async def close(self) -> None:
        """Refuse new searches, end the waiting ones with EngineClosed, stop."""
        ...
