"""One prompt's beam while it grows, level by level, and what it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Hypotheses
from decoding.expand import child_ranges, count_allowed, expand
from index.errors import ConfigError
from index.trie import Nodes, Trie, TrieFilter


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one level chose, for each kept prefix: its parent's row in the level before, its code,
    the log-probability of the code, and how many allowed children the parent had."""

    parents: Nodes
    codes: NDArray[np.int64]
    level_scores: NDArray[np.float32]
    branching: NDArray[np.int32]


@dataclass(slots=True, eq=False)
class Beam:
    """The kept prefixes, best first: nodes int64 (n,) of the last level reached, scores (n,)."""

    trie: Trie
    width: int
    filter: TrieFilter | None = None
    nodes: Nodes = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, dtype=np.float32))
    steps: list[Step] = field(default_factory=list[Step])

    def __len__(self) -> int:
        return len(self.nodes)

    def grow(self, log_probabilities: NDArray[np.float32]) -> Step:
        """Go down one level; `log_probabilities` float32 (len(self), K)."""
        level = len(self.steps)
        bits = None if self.filter is None else self.filter.bits[level]
        chosen = expand(
            self.trie, level, self.nodes, self.scores, log_probabilities, bits, self.width
        )
        first, end = child_ranges(self.trie, level, self.nodes)
        counts = (end - first).astype(np.int32) if bits is None else count_allowed(first, end, bits)
        codes = self.trie.codes[level][chosen.nodes].astype(np.int64)
        step = Step(
            chosen.parents,
            codes,
            log_probabilities[chosen.parents, codes],
            counts[chosen.parents],
        )
        self.nodes, self.scores = chosen.nodes, chosen.scores
        self.steps.append(step)
        return step

    def drop(self) -> None:
        """Give up: no rows from here on."""
        self.nodes, self.scores = self.nodes[:0], self.scores[:0]

    def hypotheses(self) -> Hypotheses:
        """The finished beam, its steps followed back to the root."""
        # A beam that ran out has fewer steps, and no rows.
        count, levels = len(self), self.trie.layout.levels
        codes = np.empty((count, levels), dtype=np.int32)
        level_scores = np.empty((count, levels), dtype=np.float32)
        branching = np.empty((count, levels), dtype=np.int32)
        row = np.arange(count)
        for level, step in reversed(list(enumerate(self.steps))):
            codes[:, level] = step.codes[row]
            level_scores[:, level] = step.level_scores[row]
            branching[:, level] = step.branching[row]
            row = step.parents[row]
        complete = count == self.width
        return Hypotheses(self.nodes, codes, self.scores, level_scores, branching, complete)


def check_filter(trie: Trie, filter: TrieFilter | None) -> None:
    """Raises ConfigError for a filter made from another trie."""
    if filter is None:
        return
    counts = tuple(len(bits) for bits in filter.bits)
    if counts != trie.node_counts:
        raise ConfigError(
            f"the filter covers {counts} nodes per level, the trie has {trie.node_counts}; "
            "make the filter from the snapshot that is searched"
        )
