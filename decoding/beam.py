"""Beams of prompts while they grow, level by level, and what they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from decoding.children import NO_PRIOR
from decoding.engine import Hypotheses
from decoding.expand import (
    Slots,
    added_columns,
    address,
    as_logits,
    base_of,
    check_size,
    level_arrays,
)
from decoding.growth import grow_beams
from decoding.softmax import Floats
from decoding.team import ALONE, Team
from index.errors import ConfigError
from index.live.trie import AnyTrie
from index.trie import Nodes, TrieFilter

_NOTHING_SPECIAL = (0, 0, 0, 0, 0)


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
    team: Team = ALONE,
    starts: Sequence[int] | None = None,
    *,
    normalised: bool = False,
) -> Growth:
    """Grow all beams of a wave by one level, each exactly as if it were alone.

    `logits` float32 (rows, K). `starts`: each beam's first row of them; None where the beams' rows
    follow each other. `priors` float32 (beams, K), added first. `normalised`: the logits are
    log-probabilities, all ≤ 0, taken as they are. A beam without rows stays as it is. The beams are
    at the same level and their tries have the same base. `team`: threads that share what is large
    enough. Raises ConfigError for a beam too wide to be ranked.
    """
    live = [row for row, beam in enumerate(beams) if len(beam)]
    if not live:
        return Growth(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    chosen = [beams[row] for row in live] if len(live) < len(beams) else beams
    level, base = len(chosen[0].steps), base_of(chosen[0].trie)
    codebook = logits.shape[1]
    table: list[tuple[int, ...]] = []
    known: dict[int, Any] = {}
    row = first_logits = slot = 0
    for place, beam in zip(live, chosen, strict=True):
        assert len(beam.steps) == level and base_of(beam.trie) is base
        count = len(beam)
        if starts is not None:
            first_logits = starts[place]
        prior = NO_PRIOR if priors is None else place
        table.append(
            (row, count, first_logits, prior, beam.width, slot, *_allowed(beam, level, known))
        )
        row, first_logits, slot = row + count, first_logits + count, slot + beam.width
    check_size(max(map(len, chosen)), codebook)
    slots = Slots.empty(len(chosen), slot)
    arguments: tuple[Any, ...] = (
        np.array(table),
        *level_arrays(base, level),
        _joined([beam.nodes for beam in chosen]),
        _joined([beam.scores for beam in chosen]),
        _joined([beam.ranks for beam in chosen]),
        as_logits(logits),
        np.empty((0, codebook), dtype=np.float32) if priors is None else as_logits(priors),
        normalised,
        *slots,
    )
    grow_beams(team, *arguments)
    return _hand_out(chosen, slots)


def _allowed(beam: Beam, level: int, known: dict[int, Any]) -> tuple[int, ...]:
    """Addresses of what is special to a beam, its filter's bits and added nodes; `known` has those
    of other beams, by identity."""
    if beam.filter is None and beam.trie is base_of(beam.trie):
        return _NOTHING_SPECIAL
    bits, added = 0, _NOTHING_SPECIAL[1:]
    if beam.filter is not None:
        bits = known.get(id(beam.filter))
        if bits is None:
            bits = known[id(beam.filter)] = address(beam.filter.bits[level])
    if beam.trie is not base_of(beam.trie):
        added = known.get(id(beam.trie))
        if added is None:
            added = known[id(beam.trie)] = added_columns(beam.trie, level)
    return bits, *added


def _joined(parts: list[Any]) -> Any:
    """The parts one after the other."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _hand_out(beams: Sequence[Beam], slots: Slots) -> Growth:
    """Give each beam its new rows."""
    nodes, parents, sources, codes, ranks = slots.whole
    scores, level_scores = slots.real
    branching = slots.branching
    kept: list[slice] = []
    first, full = 0, True
    for beam, count in zip(beams, slots.counts.tolist(), strict=True):
        own = slice(first, first + count)
        beam.nodes, beam.scores, beam.ranks = nodes[own], scores[own], ranks[own]
        beam.steps.append(Step(parents[own], codes[own], level_scores[own], branching[own]))
        kept.append(own)
        first += beam.width
        full &= count == beam.width
    if full:
        return Growth(sources, codes)
    return Growth(
        np.concatenate([sources[own] for own in kept]), np.concatenate([codes[own] for own in kept])
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
