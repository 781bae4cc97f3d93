"""Expansion on the GPU: fixed shapes, no host synchronisation, usable inside a CUDA graph.

Same choice as decoding/expand.py: only legal children are visited, level log softmax over the whole
codebook, exact top-k by score, ties by SID order. A trie on the device has no added nodes, so the
order of node numbers is SID order, and a candidate is one integer: its score, mapped so that
integers sort as floats do, above the complement of its node number. All keys differ.

Two or three launches per level, each over all queries:

  score    One program per few rows: the log-sum-exp over the codebook, then the rows' runs of
           children, as long as they are. A level whose beams have few children (`direct`) writes
           them as candidates. Elsewhere runs are cut into groups of up to 32 children; each group's
           best score is counted in a histogram by distance from the beam's best (logarithmic bins,
           monotone in the score), and the group goes to the query's list.
  collect  The first bin at which the histogram reaches k bounds the k-th best child from below,
           since every counted group best is a child. Children of the groups that reach that bin are
           scored again, and those within it become candidates: few more than k.
  rank     A candidate's rank is the number of larger keys; ranks below k are places in the result.

The histogram only decides who is looked at; the choice compares whole keys. If ties leave more than
`_RANK_LIMIT` candidates, rank first finds the k-th key digit by digit: slower, and exact.

Counters and histograms are zero between calls; rank clears them. An expander whose launch failed is
not used again.
"""

# A kernel's launch takes options that its signature does not have.
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoding.cuda.expand_kernels import (
    collect_kernel,
    rank_kernel,
    score_children_kernel,
    score_groups_kernel,
)
from index.errors import ConfigError
from index.trie import Trie

_MAX_NODES = (1 << 31) - 1
_RANK_LIMIT = 4096
_DIRECT_CANDIDATES = 2048
_GROUPS_PER_QUERY = 16384
_BINS = 1024
_COLLECT_CHUNK = 128
_COLLECT_SLOTS = 8
_COLLECT_WARPS = 4
_RANK_CHUNK = 16
_RANK_BLOCK = 256
_RANK_WARPS = 4
# More would leave programs of a wave waiting for others to end.
_COLLECT_REGISTERS = 96
_RANK_REGISTERS = 128
_COUNTERS = 4


class DeviceStep(NamedTuple):
    """One level's choice, best first; all (Q, W), `counts` (Q,). Rows beyond a query's count are
    dead: node, parent and code -1, score -inf. `parents` are rows of the level before.
    `level_scores`: the level's log-probability; `branching`: allowed children of the parent."""

    nodes: Tensor
    parents: Tensor
    codes: Tensor
    scores: Tensor
    level_scores: Tensor
    branching: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTrie:
    """A trie's arrays on a device: 4 bytes per inner node, 1 or 2 per node.

    `codes[l]`: uint8 or uint16 (n_l,). `child_start[l]`, l < L - 1: int32 (n_l + 1,).
    `run_lengths[l]`: on the host, int64: how many nodes of level l - 1 have 0, 1, 2, … children;
    for level 0 the root alone.
    """

    codes: tuple[Tensor, ...]
    child_start: tuple[Tensor, ...]
    node_counts: tuple[int, ...]
    level_sizes: tuple[int, ...]
    run_lengths: tuple[NDArray[np.int64], ...]

    @classmethod
    def from_trie(cls, trie: Trie, device: torch.device | str) -> DeviceTrie:
        """Copies `trie` to `device`. Raises ConfigError for a trie without SIDs or with more than
        2³¹ - 1 nodes in a level."""
        if not 0 < trie.n_leaves <= _MAX_NODES:
            raise ConfigError(
                f"a trie on the GPU has 1 to {_MAX_NODES} SIDs, got {trie.n_leaves}; "
                "build an index first, or shard the catalogue"
            )
        starts = [starts.plain() for starts in trie.starts]
        root = np.bincount([trie.node_counts[0]])
        return cls(
            tuple(torch.tensor(codes, device=device) for codes in trie.codes),
            tuple(torch.tensor(start.astype(np.int32), device=device) for start in starts),
            trie.node_counts,
            trie.layout.level_sizes,
            (root, *(np.bincount(np.diff(start)) for start in starts)),
        )

    @property
    def n_bytes(self) -> int:
        """Device memory, bytes."""
        return sum(tensor.nbytes for tensor in (*self.codes, *self.child_start))


def bitmap(bits: NDArray[np.bool_], device: torch.device | str) -> Tensor:
    """Filter bits of a level, bool (n_l,) → int32 words; node i is bit i % 32 of word i // 32.
    Its `data_ptr()` goes into the filter table; keep the tensor as long as the table."""
    padded = np.zeros(-(-len(bits) // 32) * 32, dtype=np.bool_)
    padded[: len(bits)] = bits
    return torch.tensor(np.packbits(padded, bitorder="little").view(np.int32), device=device)


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """How a level is searched; every number is a shape, none changes the result.

    `rows`: beam rows per query that come in. `direct`, `group`: see the module's head. `tile`:
    children of a row that are visited at once; `wide`: the same for what is left of longer runs of
    a direct level, 0 where there are none. `splits`: programs per row (the root). `code_block`:
    codes of a row that are summed at once. `candidates`, `groups`: room per query, for the worst
    beam possible. `…_programs`: per query. Chosen by measurements on an H100.
    """

    rows: int
    direct: bool
    group: int
    tile: int
    wide: int
    splits: int
    code_block: int
    rows_per_program: int
    score_warps: int
    score_registers: int
    candidates: int
    groups: int
    collect_programs: int
    rank_programs: int

    @classmethod
    def choose(cls, trie: DeviceTrie, level: int, queries: int, width: int) -> LevelPlan:
        """A plan from how long the level's runs of children are."""
        rows = width if level else 1
        lengths = trie.run_lengths[level]
        candidates = _largest_groups(lengths, rows, 1, 1)
        # Beams meet long runs more often than short ones: weigh nodes by their children.
        weights = lengths * np.arange(len(lengths))
        typical = float((weights * np.arange(len(lengths))).sum() / weights.sum())
        expected = min(candidates, round(rows * typical))
        direct = expected <= _DIRECT_CANDIDATES
        group = 1 if direct else min(32, _power(-(-expected // _GROUPS_PER_QUERY)))
        longest = len(lengths) - 1
        usual = int(np.searchsorted(np.cumsum(weights), 0.95 * weights.sum()))
        covered = _power(longest) if longest <= 4 * usual else _power(usual)
        code_block = min(_power(trie.level_sizes[level]), 8192)
        if direct:
            tile, per_program = min(max(covered, 4), 1024), 4096 // max(code_block, covered)
            per_program = max(1, min(per_program, queries * rows // 256, rows))
            per_program = 1 << (per_program.bit_length() - 1)
            warps = min(8, max(1, per_program * max(code_block, tile) // 512))
            splits = 1
        else:
            # A tile far larger than the usual run would have groups of few children.
            tile, per_program = max(min(_power(usual), 1024 if level else 512), 4 * group), 1
            splits = 1 if level else -(-longest // tile)
            warps = min(8, max(1, max(code_block, tile) // 512))
        groups = 0 if direct else _largest_groups(lengths, rows, tile, tile // group)
        return cls(
            rows=rows,
            direct=direct,
            group=group,
            tile=tile,
            wide=1024 if direct and longest > tile else 0,
            splits=splits,
            code_block=code_block,
            rows_per_program=per_program,
            score_warps=warps,
            score_registers=64 if max(code_block, tile) <= 512 * warps else 128,
            candidates=max(candidates, 1),
            groups=groups,
            collect_programs=min(512, -(-groups // _COLLECT_CHUNK)),
            rank_programs=min(128, -(-(expected if direct else 3 * width // 2) // _RANK_CHUNK)),
        )


def _power(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()


def _largest_groups(lengths: NDArray[np.int64], rows: int, tile: int, stride: int) -> int:
    """Groups of the `rows` longest runs: `stride` per tile, fewer only where a tile has fewer
    children."""
    total, left = 0, rows
    for length in range(len(lengths) - 1, 0, -1):
        taken = min(left, int(lengths[length]))
        total += taken * (length // tile * stride + min(length % tile, stride))
        left -= taken
        if not left:
            break
    return total


class Expander:
    """Expands the beams of Q queries, at most W rows each, level by level on one device.

    All memory is allocated here. `steps[l]` is where level l's choice is written: always the same
    tensors, so that a graph can be replayed. Calls of one expander must not overlap.
    """

    def __init__(
        self,
        trie: DeviceTrie,
        queries: int,
        max_width: int,
        level_sizes: Sequence[int],
        device: torch.device | str,
        *,
        plans: Sequence[LevelPlan] | None = None,
        dependent_launch: bool = False,
    ) -> None:
        """`plans`: one per level instead of the chosen ones. `dependent_launch`: a launch begins
        while the one before it ends, and waits there (Hopper and later). Raises ConfigError for
        levels that are not the trie's, and for Q or W below 1."""
        if tuple(level_sizes) != trie.level_sizes:
            raise ConfigError(
                f"the model has levels {tuple(level_sizes)}, the trie {trie.level_sizes}; "
                "use the snapshot that the checkpoint was trained with"
            )
        if queries < 1 or max_width < 1:
            raise ConfigError(f"an expander has ≥ 1 queries and rows, got {queries}, {max_width}")
        self.trie, self.queries, self.max_width = trie, queries, max_width
        levels = range(len(trie.level_sizes))
        self.plans = tuple(
            plans or (LevelPlan.choose(trie, level, queries, max_width) for level in levels)
        )
        self._dependent = dependent_launch

        def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        def step() -> DeviceStep:
            ids = [empty(queries, max_width) for _ in range(4)]
            floats = [empty(queries, max_width, dtype=torch.float32) for _ in range(2)]
            return DeviceStep(*ids[:3], *floats, ids[3], empty(queries))

        self.steps = tuple(step() for _ in levels)
        candidates = max(plan.candidates for plan in self.plans)
        groups = max(plan.groups for plan in self.plans)
        self.normalisers = empty(queries, max_width, dtype=torch.float32)
        self._row_branching = empty(queries, max_width)
        self._keys = empty(queries, candidates, dtype=torch.int64)
        self._key_rows = empty(queries, candidates)
        self._key_levels = empty(queries, candidates, dtype=torch.float32)
        self._group_bins = empty(queries, groups)
        self._group_children = empty(queries, groups)
        self._group_rows = empty(queries, groups)
        self._histogram = empty(queries, _BINS).zero_()
        self._counters = empty(queries, _COUNTERS).zero_()
        self._no_prior = empty(1, dtype=torch.float32)

    @property
    def n_bytes(self) -> int:
        """Device memory of results and workspaces, bytes."""
        owned = [tensor for step in self.steps for tensor in step]
        owned += [part for part in vars(self).values() if isinstance(part, Tensor)]
        return sum(tensor.nbytes for tensor in owned)

    def expand(
        self,
        level: int,
        nodes: Tensor,
        scores: Tensor,
        logits: Tensor,
        prior: Tensor | None,
        filter_table: Tensor,
        widths: Tensor,
    ) -> DeviceStep:
        """One level for all queries; returns `steps[level]`, whose tensors are written.

        `nodes` int32, `scores` float32 (Q, R), R = 1 at level 0 and W below; a row with score -inf
        is dead, level 0's nodes are not read. `logits` (Q, R, K), adjacent along K. `prior` float32
        (Q, K). `filter_table` int64 (Q, L): address of each query's bitmap of each level, 0 for
        none. `widths` int32 (Q,): rows wanted, at most W. Fastest when rows come best first. A
        child whose score is -inf or NaN is not kept.
        """
        plan, step = self.plans[level], self.steps[level]
        size, levels = self.trie.level_sizes[level], len(self.trie.level_sizes)
        assert nodes.shape == scores.shape == (self.queries, plan.rows)
        assert logits.shape == (self.queries, plan.rows, size) and logits.stride(2) == 1
        assert nodes.is_contiguous() and scores.is_contiguous() and widths.is_contiguous()
        assert filter_table.shape == (self.queries, levels) and filter_table.is_contiguous()
        assert prior is None or (prior.shape == (self.queries, size) and prior.is_contiguous())
        options: dict[str, Any] = {"launch_pdl": True} if self._dependent else {}
        codes = self.trie.codes[level]
        prior_table = self._no_prior if prior is None else prior
        beams = (logits, logits.stride(0), logits.stride(1), nodes, scores, prior_table)
        # Level 0 has no starts above it; any tensor of the type does.
        starts = self.trie.child_start[level - 1] if level else self._counters
        of_rows = (starts, codes, filter_table, self._row_branching, self.normalisers)
        sizes = (level, levels, self.max_width, self.trie.node_counts[0])
        if plan.direct:
            chunks = -(-plan.rows // plan.rows_per_program)
            score_children_kernel[(self.queries * chunks,)](
                *beams,
                *of_rows,
                self._keys,
                self._key_rows,
                self._key_levels,
                self._counters,
                plan.rows,
                chunks,
                *sizes,
                self._keys.shape[1],
                ROOT=level == 0,
                CODES=size,
                CODE_BLOCK=plan.code_block,
                ROWS=plan.rows_per_program,
                TILE=plan.tile,
                WIDE=plan.wide,
                COUNTERS=_COUNTERS,
                PRIOR=prior is not None,
                DEPENDENT=self._dependent,
                num_warps=plan.score_warps,
                **options,
            )
        else:
            score_groups_kernel[(self.queries * plan.rows * plan.splits,)](
                *beams,
                *of_rows,
                self._group_bins,
                self._group_children,
                self._group_rows,
                self._histogram,
                self._counters,
                plan.rows,
                *sizes,
                self._group_bins.shape[1],
                ROOT=level == 0,
                CODES=size,
                CODE_BLOCK=plan.code_block,
                TILE=plan.tile,
                SPLITS=plan.splits,
                GROUP=plan.group,
                BINS=_BINS,
                COUNTERS=_COUNTERS,
                PRIOR=prior is not None,
                DEPENDENT=self._dependent,
                num_warps=plan.score_warps,
                maxnreg=plan.score_registers,
                **options,
            )
        if not plan.direct:
            collect_kernel[(self.queries * plan.collect_programs,)](
                logits,
                logits.stride(0),
                logits.stride(1),
                scores,
                prior_table,
                codes,
                filter_table,
                widths,
                self.normalisers,
                self._keys,
                self._key_rows,
                self._key_levels,
                self._group_bins,
                self._group_children,
                self._group_rows,
                self._histogram,
                self._counters,
                plan.rows,
                level,
                levels,
                size,
                self.max_width,
                plan.collect_programs,
                self._keys.shape[1],
                self._group_bins.shape[1],
                CHUNK=_COLLECT_CHUNK,
                SLOTS=_COLLECT_SLOTS if plan.group > 4 else 32,
                GROUP=plan.group,
                STRIDE=plan.tile // plan.group,
                BINS=_BINS,
                COUNTERS=_COUNTERS,
                PRIOR=prior is not None,
                DEPENDENT=self._dependent,
                num_warps=_COLLECT_WARPS,
                maxnreg=_COLLECT_REGISTERS,
                **options,
            )
        rank_kernel[(self.queries * plan.rank_programs,)](
            codes,
            widths,
            self._row_branching,
            self._keys,
            self._key_rows,
            self._key_levels,
            self._histogram,
            self._counters,
            *step,
            self.max_width,
            plan.rank_programs,
            self._keys.shape[1],
            CHUNK=_RANK_CHUNK,
            BLOCK=_RANK_BLOCK,
            FILL=_power(-(-self.max_width // plan.rank_programs)),
            CLEAR=_power(-(-_BINS // plan.rank_programs)),
            BINS=_BINS,
            COUNTERS=_COUNTERS,
            LIMIT=max(_RANK_LIMIT, 2 * self.max_width),
            DEPENDENT=self._dependent,
            num_warps=_RANK_WARPS,
            maxnreg=_RANK_REGISTERS,
            **options,
        )
        return step
