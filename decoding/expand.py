"""Expansion: from a beam's prefixes to the best prefixes one level longer.

The level's log-softmax over its whole codebook, prior included, is part of it. Only legal children
are visited; nothing is padded to the largest branching factor and no vocabulary is masked. The
choice is exact: the `beam_width` best by score, ties by SID order. Two implementations, proven
equal: `expand_reference` (torch, any device) and `expand` (Numba, CPU, see decoding/growth.py).

A score of -inf is dead: such rows have no children and such children are not kept. NaN is dead too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.children import NO_PRIOR
from decoding.growth import grow_beams
from decoding.softmax import Floats
from decoding.team import ALONE
from index.errors import ConfigError
from index.live.trie import AnyTrie, LiveTrie
from index.trie import Codes, Nodes, Trie

_NO_BASE = np.empty(0, dtype=np.uint32)
_NO_DELTA = np.empty(0, dtype=np.uint16)
# A trie's arrays are read-only, and other arrays would be compiled for once more.
_NO_BASE.flags.writeable = _NO_DELTA.flags.writeable = False


class Expansion(NamedTuple):
    """The kept prefixes, best first, all (m,).

    nodes int64 of the expanded level; parents int64, rows of the old beam; codes int64; scores
    float32; level_scores float32, the log-probability of the step; branching int32, how many
    allowed children the parent has. m < beam width only when there are no more allowed children.
    """

    nodes: Nodes
    parents: Nodes
    codes: Nodes
    scores: Floats
    level_scores: Floats
    branching: NDArray[np.int32]


def expand(
    trie: AnyTrie,
    level: int,
    nodes: Nodes,
    scores: Floats,
    logits: Floats,
    prior: Floats | None,
    bits: NDArray[np.bool_] | None,
    beam_width: int,
    order: Nodes | None = None,
) -> Expansion:
    """Expand one beam to `level`.

    `nodes` int64 (rows,): distinct nodes of level - 1 (for level 0 one row, the root, any number).
    `scores` float32 (rows,). `logits` float32 (rows, K_level) and `prior` (K_level,), which is
    added to them. `bits`: the filter's bool per node of `level`, None for all; as every row leads
    to an allowed leaf, an only child is not looked up. `order` int64 (rows,): the rank of each
    row's SID among the rows; only with added nodes among them do node numbers not tell. Fastest
    when rows come best first.
    """
    return _expand(trie, level, nodes, scores, logits, prior, bits, beam_width, order, False)


def choose(
    trie: AnyTrie,
    level: int,
    nodes: Nodes,
    scores: Floats,
    log_probabilities: Floats,
    bits: NDArray[np.bool_] | None,
    beam_width: int,
    order: Nodes | None = None,
) -> Expansion:
    """`expand` for log-probabilities float32 (rows, K_level), all ≤ 0, as they are."""
    return _expand(
        trie, level, nodes, scores, log_probabilities, None, bits, beam_width, order, True
    )


def expand_reference(
    trie: AnyTrie,
    level: int,
    nodes: Nodes,
    scores: Floats,
    logits: Floats,
    prior: Floats | None,
    bits: NDArray[np.bool_] | None,
    beam_width: int,
    order: Nodes | None = None,
) -> Expansion:
    """`expand` by torch."""
    exact = torch.from_numpy(logits)
    if prior is not None:
        exact = exact + torch.from_numpy(prior)
    table = torch.log_softmax(exact, dim=-1).numpy()
    return choose_reference(trie, level, nodes, scores, table, bits, beam_width, order)


def choose_reference(
    trie: AnyTrie,
    level: int,
    nodes: Nodes,
    scores: Floats,
    log_probabilities: Floats,
    bits: NDArray[np.bool_] | None,
    beam_width: int,
    order: Nodes | None = None,
) -> Expansion:
    """`choose` by a ragged gather of all children and stable sorts."""
    parents, children = _all_children(trie, level, nodes)
    if bits is not None:
        kept = torch.from_numpy(bits)[children]
        parents, children = parents[kept], children[kept]
    branching = torch.bincount(parents, minlength=len(nodes))
    codes = torch.from_numpy(_codes_at(trie, level, children.numpy()))
    level_scores = torch.from_numpy(log_probabilities)[parents, codes]
    totals = torch.from_numpy(scores)[parents] + level_scores + 0.0
    rank = torch.from_numpy(sid_order(trie, level, nodes) if order is None else order)
    by_sid = torch.argsort(rank[parents] * log_probabilities.shape[1] + codes)
    by_sid = by_sid[totals[by_sid] > -torch.inf]
    best = by_sid[torch.argsort(-totals[by_sid], stable=True)][:beam_width]
    return Expansion(
        children[best].numpy(),
        parents[best].numpy(),
        codes[best].numpy(),
        totals[best].numpy(),
        level_scores[best].numpy(),
        branching[parents[best]].to(torch.int32).numpy(),
    )


def sid_order(trie: AnyTrie, level: int, nodes: Nodes) -> Nodes:
    """Ranks int64 (rows,) of the SIDs of distinct nodes of level - 1, from their numbers.

    Added nodes have no place among base nodes by their numbers but on level 0, by their codes.
    """
    known = nodes
    if level == 1:
        known = _codes_at(trie, 0, nodes)
    elif level and isinstance(trie, LiveTrie):
        assert nodes.max(initial=-1) < trie.base.node_counts[level - 1], "added nodes need an order"
    ranks = np.empty(len(nodes), dtype=np.int64)
    ranks[np.argsort(known)] = np.arange(len(nodes))
    return ranks


def base_of(trie: AnyTrie) -> Trie:
    """The trie without what was added to it."""
    return trie.base if isinstance(trie, LiveTrie) else trie


def level_arrays(
    base: Trie, level: int
) -> tuple[Codes, NDArray[np.uint32], NDArray[np.uint16], int]:
    """What the compiled core reads of one level: codes, and the compact starts of the one above."""
    if not level:
        return base.codes[0], _NO_BASE, _NO_DELTA, -1
    starts = base.starts[level - 1]
    return base.codes[level], starts.base, starts.delta, starts.shift


def address(array: NDArray[np.generic]) -> int:
    """Where a contiguous array's data is; the caller keeps the array alive."""
    assert array.flags.c_contiguous
    return int(array.__array_interface__["data"][0])


def added_columns(trie: AnyTrie, level: int) -> tuple[int, int, int, int]:
    """What a LiveTrie adds on a level, as the table of beams has it."""
    if not isinstance(trie, LiveTrie):
        return 0, 0, 0, 0
    # Not `trie.added`: with changes coming in, most views are searched once.
    parents_at, n_parents, starts_at, codes_at, n_codes = trie.table[level].tolist()
    if not n_codes:
        return 0, 0, 0, 0
    return (
        n_parents,
        address(trie.parents) + parents_at * trie.parents.itemsize,
        address(trie.starts) + starts_at * trie.starts.itemsize,
        address(trie.codes) + codes_at * trie.codes.itemsize,
    )


class Slots(NamedTuple):
    """Where the compiled core writes the kept prefixes; see `grow_beams`."""

    whole: Nodes
    real: Floats
    branching: NDArray[np.int32]
    counts: Nodes

    @classmethod
    def empty(cls, beams: int, slots: int) -> Slots:
        return cls(
            np.empty((5, slots), dtype=np.int64),
            np.empty((2, slots), dtype=np.float32),
            np.empty(slots, dtype=np.int32),
            np.empty(beams, dtype=np.int64),
        )


def check_size(rows: int, codebook: int) -> None:
    """Raises ConfigError where a row's rank and a code do not fit 32 bits together."""
    if rows > 1 << (32 - (codebook - 1).bit_length()):
        raise ConfigError(
            f"{rows} beams over {codebook} codes are more than can be told apart; "
            f"{1 << (32 - (codebook - 1).bit_length())} is the widest beam"
        )


def as_logits(logits: Floats) -> Floats:
    """As the compiled core takes them: float32, contiguous."""
    return np.ascontiguousarray(logits, dtype=np.float32)


def _expand(
    trie: AnyTrie,
    level: int,
    nodes: Nodes,
    scores: Floats,
    logits: Floats,
    prior: Floats | None,
    bits: NDArray[np.bool_] | None,
    beam_width: int,
    order: Nodes | None,
    normalised: bool,
) -> Expansion:
    check_size(len(nodes), logits.shape[1])
    if not level:
        nodes = np.zeros(len(nodes), dtype=np.int64)
    ranks = sid_order(trie, level, nodes) if order is None else order
    own_prior = NO_PRIOR if prior is None else 0
    filter_address = 0 if bits is None else address(bits)
    added = added_columns(trie, level)
    table = np.array([[0, len(nodes), 0, own_prior, beam_width, 0, filter_address, *added]])
    slots = Slots.empty(1, beam_width)
    grow_beams(
        ALONE,
        table,
        *level_arrays(base_of(trie), level),
        nodes,
        scores,
        ranks,
        as_logits(logits),
        as_logits(logits[:0] if prior is None else prior[None]),
        normalised,
        *slots,
    )
    kept = slice(0, int(slots.counts[0]))
    found, parents, _, codes, _ = slots.whole[:, kept]
    totals, level_scores = slots.real[:, kept]
    return Expansion(found, parents, codes, totals, level_scores, slots.branching[kept])


def _all_children(trie: AnyTrie, level: int, nodes: Nodes) -> tuple[torch.Tensor, torch.Tensor]:
    """Parents' rows and numbers of all children, base and added, int64."""
    runs: list[tuple[Nodes, Nodes]] = []
    if level:
        runs.append(trie.children(level - 1, nodes))
    else:
        end = np.array([base_of(trie).node_counts[0]], dtype=np.int64)
        runs.append((np.zeros(1, dtype=np.int64), end))
    if isinstance(trie, LiveTrie):
        above = nodes if level else np.zeros(1, dtype=np.int64)
        runs.append(trie.added_children(level - 1, above))
    first = torch.from_numpy(np.concatenate([run[0] for run in runs]))
    counts = torch.from_numpy(np.concatenate([run[1] for run in runs])) - first
    run = torch.repeat_interleave(torch.arange(len(counts)), counts)
    begin = torch.cumsum(counts, 0) - counts
    return run % len(nodes), first[run] + torch.arange(len(run)) - begin[run]


def _codes_at(trie: AnyTrie, level: int, nodes: Nodes) -> Nodes:
    if isinstance(trie, LiveTrie):
        return trie.codes_at(level, nodes)
    return trie.codes[level][nodes].astype(np.int64)
