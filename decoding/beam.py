"""Beams of prompts while they grow, level by level, and what they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Hypotheses
from decoding.expand import (
    added_columns,
    address,
    as_logits,
    base_of,
    check_size,
    empty_grown,
    level_arrays,
    rows_of,
)
from decoding.selection import (
    ADDED,
    BITS,
    COLUMNS,
    FIRST_LOGITS,
    FIRST_ROW,
    FIRST_SLOT,
    PRIOR,
    ROWS,
    WIDTH,
    Floats,
    Grown,
    grow_beams,
)
from index.errors import ConfigError
from index.live.trie import AnyTrie
from index.trie import Nodes, TrieFilter


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
    """The kept prefixes, best first: nodes int64 (n,) of the last level reached, scores (n,), and
    ranks int64 (n,), each prefix's place among them in SID order."""

    trie: AnyTrie
    width: int
    filter: TrieFilter | None = None
    nodes: Nodes = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, dtype=np.float32))
    ranks: Nodes = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    steps: list[Step] = field(default_factory=list[Step])

    def __len__(self) -> int:
        return len(self.nodes)

    def grow(self, logits: Floats, prior: Floats | None = None) -> Step:
        """Go down one level; `logits` float32 (len(self), K), `prior` (K,) is added first."""
        grow_all([self], logits, None if prior is None else prior[None])
        return self.steps[-1]

    def drop(self) -> None:
        """Give up: no rows from here on."""
        self.nodes, self.scores, self.ranks = self.nodes[:0], self.scores[:0], self.ranks[:0]

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


class Growth(NamedTuple):
    """A wave one level down, beam after beam: the parents' rows in the logits and the codes, both
    int64 (kept rows,). Each beam knows how many rows are its own."""

    parents: Nodes
    codes: Nodes


def grow_all(
    beams: Sequence[Beam],
    logits: Floats,
    priors: Floats | None = None,
    threads: int = 1,
    starts: Sequence[int] | None = None,
) -> Growth:
    """Grow all beams of a wave by one level, each exactly as if it were alone.

    `logits` float32 (rows, K). `starts`: each beam's first row of them; None where the beams' rows
    follow each other. `priors` float32 (beams, K), added first. A beam without rows stays as it
    is. The beams are at the same level and their tries have the same base. Raises ConfigError for
    a beam too wide to be ranked.
    """
    counts = [len(beam) for beam in beams]
    live = [row for row, count in enumerate(counts) if count]
    if not live:
        return Growth(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    level, base = len(beams[live[0]].steps), base_of(beams[live[0]].trie)
    codebook = logits.shape[1]
    if starts is None:
        starts = _offsets(counts)
    chosen = [beams[row] for row in live]
    widths = [beam.width for beam in chosen]
    slots = _offsets(widths)
    table = np.zeros((len(live), COLUMNS), dtype=np.int64)
    table[:, FIRST_ROW] = _offsets([counts[row] for row in live])
    table[:, ROWS] = [counts[row] for row in live]
    table[:, FIRST_LOGITS] = [starts[row] for row in live]
    table[:, PRIOR] = -1 if priors is None else live
    table[:, WIDTH] = widths
    table[:, FIRST_SLOT] = slots
    check_size(max(counts), codebook)
    for entry, beam in zip(table, chosen, strict=True):
        assert len(beam.steps) == level and base_of(beam.trie) is base
        if beam.filter is not None:
            entry[BITS] = address(beam.filter.bits[level])
        if beam.trie is not base:
            entry[ADDED:] = added_columns(beam.trie, level)
    rows = rows_of(
        np.concatenate([beam.nodes for beam in chosen]),
        np.concatenate([beam.scores for beam in chosen]),
        np.concatenate([beam.ranks for beam in chosen]),
    )
    grown = empty_grown(len(live), slots[-1] + widths[-1])
    grow_beams(
        0,
        len(live),
        table,
        level_arrays(base, level),
        rows,
        as_logits(logits),
        np.empty((0, codebook), dtype=np.float32) if priors is None else as_logits(priors),
        False,
        grown,
    )
    return _hand_out(chosen, slots, grown)


def _offsets(counts: Sequence[int]) -> list[int]:
    """Where each part begins when parts of these lengths follow each other."""
    offsets = [0] * len(counts)
    for part in range(1, len(counts)):
        offsets[part] = offsets[part - 1] + counts[part - 1]
    return offsets


def _hand_out(beams: Sequence[Beam], slots: Sequence[int], grown: Grown) -> Growth:
    """Give each beam its new rows."""
    full = True
    kept: list[slice] = []
    for beam, slot, count in zip(beams, slots, grown.counts.tolist(), strict=True):
        own = slice(slot, slot + count)
        beam.nodes, beam.scores, beam.ranks = grown.nodes[own], grown.scores[own], grown.ranks[own]
        step = Step(
            grown.parents[own], grown.codes[own], grown.level_scores[own], grown.branching[own]
        )
        beam.steps.append(step)
        full &= count == beam.width
        kept.append(own)
    if full:
        return Growth(grown.sources, grown.codes)
    return Growth(
        np.concatenate([grown.sources[own] for own in kept]),
        np.concatenate([grown.codes[own] for own in kept]),
    )


def check_filter(trie: AnyTrie, filter: TrieFilter | None) -> None:
    """Raises ConfigError for a filter made from another trie."""
    if filter is None:
        return
    counts = tuple(len(bits) for bits in filter.bits)
    if counts != trie.node_counts:
        raise ConfigError(
            f"the filter covers {counts} nodes per level, the trie has {trie.node_counts}; "
            "make the filter from the snapshot that is searched"
        )
