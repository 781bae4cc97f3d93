"""Expansion on the GPU: fixed shapes, no host synchronisation, usable inside a CUDA graph.

Same choice as decoding/expand.py: only legal children are visited, level log softmax over the whole
codebook, exact top-k by score, ties by SID order. A trie on the device has no added nodes, so the
order of node numbers is SID order, and a candidate is one integer: its score, mapped so that
integers sort as floats do, above the complement of its node number. All keys differ.

Two or three launches per level, each over all queries:

  score    One program per few rows: the log-sum-exp over the codebook, then the rows' runs of
           children, as long as they are. A level whose beams have few children (`direct`) writes
           them as candidates. Else runs are cut into groups of up to 32 children; the best of each
           group goes to the query's list and is counted in a histogram by distance from the beam's
           best score (logarithmic bins, monotone in the score).
  collect  The first bin at which the histogram reaches k bounds the k-th best child from below,
           since every counted group best is a child. Children of the groups that reach that bin are
           scored again, and those within it become candidates: few more than k.
  rank     A candidate's rank is the number of larger keys; ranks below k are places in the result.

The histogram only decides who is looked at; the choice compares whole keys. If ties leave more than
`_RANK_LIMIT` candidates, rank first finds the k-th key digit by digit: slower, and exact.

Counters and histograms are zero between calls; the last program of rank clears them.
"""

# Triton's language is untyped; kernels are exempt from the type checker.
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportIndexIssue=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportOptionalOperand=false, reportGeneralTypeIssues=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

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
_SCORE_REGISTERS = 128
_COLLECT_REGISTERS = 64
_RANK_REGISTERS = 96
# Numbers of the counters of a query.
_GROUPS_LISTED = tl.constexpr(0)
_CANDIDATES_LISTED = tl.constexpr(1)
_RANKS_STARTED = tl.constexpr(2)
_COUNTERS = 4
_LEAST_KEY = tl.constexpr(-(1 << 63))
# Groups have at most 32 children: a size, and a row above it, are one number.
_SIZE_BITS = tl.constexpr(6)
_SIZE_MASK = tl.constexpr(63)
# Bins of the distance from the best score: 64 per octave from 2**-9 to 2**7.
_BIN_SHIFT = tl.constexpr(17)
_FIRST_BIN = tl.constexpr((127 - 9) << 6)


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
    children of a row that are visited at once; `wide`: the same for what is left of longer runs, 0
    where there are none. `splits`: programs per row (the root). `code_block`: codes of a row that
    are summed at once. `candidates`, `groups`: room per query, for the worst beam possible.
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
            tile, per_program = max(min(covered, 1024 if level else 512), 4 * group), 1
            splits = 1 if level else -(-longest // tile)
            warps = min(8, max(1, max(code_block, tile) // (1024 if level else 512)))
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
            candidates=max(candidates, 1),
            groups=groups,
            collect_programs=min(512, -(-groups // _COLLECT_CHUNK)),
            rank_programs=min(128, -(-(expected if direct else 3 * width // 2) // _RANK_CHUNK)),
        )


def _power(number: int) -> int:
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
        """`plans`: one per level instead of the chosen ones. `dependent_launch`: launches overlap
        the end of the launch before (Hopper and later). Raises ConfigError for levels that are not
        the trie's, and for Q or W below 1."""
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
            _score_children_kernel[(self.queries * chunks,)](
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
            _score_groups_kernel[(self.queries * plan.rows * plan.splits,)](
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
                maxnreg=_SCORE_REGISTERS,
                **options,
            )
        if not plan.direct:
            _collect_kernel[(self.queries * plan.collect_programs,)](
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
        _rank_kernel[(self.queries * plan.rank_programs,)](
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


@triton.jit
def _sortable(score):
    """int32 in the order of floats; adding zero makes -0 and 0 one number."""
    raw = (score + 0.0).to(tl.int32, bitcast=True)
    return raw ^ ((raw >> 31) & 0x7FFFFFFF)


@triton.jit
def _score_of(sortable):
    raw = sortable ^ ((sortable >> 31) & 0x7FFFFFFF)
    return raw.to(tl.float32, bitcast=True)


@triton.jit
def _bin(best, score, BINS: tl.constexpr):
    """Bins by distance from the best score; a larger score has no larger bin."""
    raw = tl.maximum(best - score, 0.0).to(tl.int32, bitcast=True)
    return tl.minimum(tl.maximum((raw >> _BIN_SHIFT) - _FIRST_BIN, 0), BINS - 1)


@triton.jit
def _best_of(scores, query, rows):
    """Where bins begin: the score of the first row, 0 if it is dead."""
    best = tl.load(scores + query * rows)
    return tl.where(best > -float("inf"), best, 0.0)


@triton.jit
def _key(sortable, child):
    return (sortable.to(tl.int64) << 32) | ((~child).to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def _allowed(address, child, asked):
    """Clears `asked` where the bitmap at `address` has no bit for the child."""
    words = address.to(tl.pointer_type(tl.int32))
    word = tl.load(words + (child >> 5), mask=asked, other=0)
    return asked & (((word >> (child & 31)) & 1) != 0)


@triton.jit
def _codes_at(child, asked, codes, address):
    """Which of the `asked` children are allowed, and their codes."""
    allowed = asked
    if address != 0:
        allowed = _allowed(address, child, asked)
    return allowed, tl.load(codes + child, mask=allowed, other=0).to(tl.int32)


@triton.jit
def _level_scores(code, allowed, row_logits, normaliser, prior, PRIOR: tl.constexpr):
    """Log-probabilities of codes, -inf where not allowed. All of one shape, or broadcast to it."""
    logit = tl.load(row_logits + code, mask=allowed, other=-float("inf")).to(tl.float32)
    if PRIOR:
        logit += tl.load(prior + code, mask=allowed, other=0.0)
    return logit - normaliser


@triton.jit
def _append(counter, flags, SIZE: tl.constexpr):
    """Places in a list for the set flags (any shape of SIZE): flat flags, flat places."""
    flat = tl.reshape(flags, [SIZE]).to(tl.int32)
    place = tl.cumsum(flat, 0) - flat
    start = tl.atomic_add(counter, tl.sum(flat, 0), sem="relaxed")
    return flat != 0, start + place


@triton.jit
def _list_candidates(
    query,
    row,
    child,
    score,
    level_score,
    keys,
    key_rows,
    key_levels,
    alive,
    counters,
    room,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    """Adds the children that are `alive` to the query's candidates; `row` (ROWS,), all else
    (TILE, ROWS)."""
    counter = counters + query * COUNTERS + _CANDIDATES_LISTED
    flag, place = _append(counter, alive, TILE * ROWS)
    place = place.to(tl.int64) + query.to(tl.int64) * room
    row_of = tl.broadcast_to(row[None, :], [TILE, ROWS])
    tl.store(keys + place, tl.reshape(_key(_sortable(score), child), [TILE * ROWS]), mask=flag)
    tl.store(key_rows + place, tl.reshape(row_of, [TILE * ROWS]), mask=flag)
    tl.store(key_levels + place, tl.reshape(level_score, [TILE * ROWS]), mask=flag)


@triton.jit
def _score_children_kernel(
    logits,
    query_stride,
    row_stride,
    nodes,
    scores,
    prior,
    child_start,
    codes,
    filter_table,
    row_branching,
    row_normaliser,
    keys,
    key_rows,
    key_levels,
    counters,
    rows,
    chunks,
    level,
    levels,
    width,
    root_children,
    candidate_room,
    ROOT: tl.constexpr,
    CODES: tl.constexpr,
    CODE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
    COUNTERS: tl.constexpr,
    PRIOR: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Lists all children of `ROWS` rows. Tiles are (children, rows)."""
    program = tl.program_id(0)
    query = program // chunks
    row = program % chunks * ROWS + tl.arange(0, ROWS)
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
    inside = row < rows
    score = tl.load(scores + query * rows + row, mask=inside, other=-float("inf"))
    live = score > -float("inf")
    if ROOT:
        first = tl.zeros([ROWS], dtype=tl.int32)
        end = tl.where(live, root_children, 0)
    else:
        node = tl.load(nodes + query * rows + row, mask=live, other=0)
        first = tl.load(child_start + node, mask=live, other=0)
        end = tl.load(child_start + node + 1, mask=live, other=0)
    address = tl.load(filter_table + query * levels + level)
    child = first[None, :] + tl.arange(0, TILE)[:, None]
    allowed, code_of = _codes_at(child, child < end[None, :], codes, address)
    row_logits = logits + query.to(tl.int64) * query_stride + row.to(tl.int64) * row_stride
    prior += query * CODES

    largest = tl.full([ROWS], -float("inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    for start in range(0, CODES, CODE_BLOCK):
        code = start + tl.arange(0, CODE_BLOCK)[None, :]
        mask = live[:, None]
        if CODES % CODE_BLOCK:
            mask = mask & (code < CODES)
        logit = tl.load(row_logits[:, None] + code, mask=mask, other=-float("inf")).to(tl.float32)
        if PRIOR:
            logit += tl.load(prior + code, mask=code < CODES, other=0.0)
        new = tl.maximum(largest, tl.max(logit, axis=1))
        shift = tl.where(new > -float("inf"), new, 0.0)
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(logit - shift[:, None]), axis=1)
        largest = new
    # The sum holds exp(0), so no log-probability exceeds zero.
    rest = tl.maximum(tl.log(tl.where(live, total, 1.0)), 0.0)
    normaliser = tl.where(live, largest + rest, 0.0)

    level_score = _level_scores(
        code_of, allowed, row_logits[None, :], normaliser[None, :], prior, PRIOR
    )
    found = score[None, :] + level_score
    _list_candidates(
        query, row, child, found, level_score, keys, key_rows, key_levels, found > -float("inf"),
        counters, candidate_room, ROWS, TILE, COUNTERS,
    )  # fmt: skip
    count = end - first
    if address != 0:
        count = tl.sum(allowed.to(tl.int32), axis=0)
    if WIDE > 0 and tl.max(end - first, axis=0) > TILE:
        for place in range(ROWS):
            picked = tl.arange(0, ROWS) == place
            last = tl.sum(tl.where(picked, end, 0), axis=0)
            one_row = tl.sum(tl.where(picked, row, 0), axis=0, keep_dims=True)
            one_score = tl.sum(tl.where(picked, score, 0.0), axis=0)
            one_normaliser = tl.sum(tl.where(picked, normaliser, 0.0), axis=0)
            one_logits = logits + query.to(tl.int64) * query_stride
            one_logits += one_row[None, :].to(tl.int64) * row_stride
            for start in range(tl.sum(tl.where(picked, first, 0), axis=0) + TILE, last, WIDE):
                more = start + tl.arange(0, WIDE)[:, None]
                present, more_codes = _codes_at(more, more < last, codes, address)
                more_scores = _level_scores(
                    more_codes, present, one_logits, one_normaliser, prior, PRIOR
                )
                sums = one_score + more_scores
                _list_candidates(
                    query, one_row, more, sums, more_scores, keys, key_rows, key_levels,
                    sums > -float("inf"), counters, candidate_room, 1, WIDE, COUNTERS,
                )  # fmt: skip
                if address != 0:
                    seen = tl.sum(tl.sum(present.to(tl.int32), axis=0), axis=0)
                    count += tl.where(picked, seen, 0)
    place = query * width + row
    tl.store(row_branching + place, count, mask=inside)
    tl.store(row_normaliser + place, normaliser, mask=inside)


@triton.jit
def _score_groups_kernel(
    logits,
    query_stride,
    row_stride,
    nodes,
    scores,
    prior,
    child_start,
    codes,
    filter_table,
    row_branching,
    row_normaliser,
    group_bins,
    group_children,
    group_rows,
    histogram,
    counters,
    rows,
    level,
    levels,
    width,
    root_children,
    group_room,
    ROOT: tl.constexpr,
    CODES: tl.constexpr,
    CODE_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
    GROUP: tl.constexpr,
    BINS: tl.constexpr,
    COUNTERS: tl.constexpr,
    PRIOR: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Lists the groups of one row, or of every SPLITS-th tile of it. A group of a tile is every
    (TILE / GROUP)-th child, so that neighbours are read together and a group's best by one thread.
    """
    STRIDE: tl.constexpr = TILE // GROUP
    program = tl.program_id(0)
    split = program % SPLITS
    query = program // (SPLITS * rows)
    row = program // SPLITS % rows
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
    # All loads that can be are on their way before the first is waited for.
    score = tl.load(scores + query * rows + row)
    row_logits = logits + query.to(tl.int64) * query_stride + row.to(tl.int64) * row_stride
    prior += query * CODES
    code = tl.arange(0, CODE_BLOCK)
    loaded = tl.load(row_logits + code, mask=code < CODES, other=-float("inf"))
    best = _best_of(scores, query, rows)
    address = tl.load(filter_table + query * levels + level)
    if ROOT:
        first = 0
        end = root_children
    else:
        node = tl.maximum(tl.load(nodes + query * rows + row), 0)
        first = tl.load(child_start + node)
        end = tl.load(child_start + node + 1)
    if score > -float("inf"):
        start = first + split * TILE
        lane = tl.arange(0, STRIDE)
        member = lane[:, None] + STRIDE * tl.arange(0, GROUP)[None, :]
        allowed, codes_here = _codes_at(start + member, start + member < end, codes, address)
        logit = loaded.to(tl.float32)
        if PRIOR:
            logit += tl.load(prior + code, mask=code < CODES, other=0.0)
        largest = tl.max(logit, axis=0)
        total = tl.sum(tl.exp(logit - largest), axis=0)
        for block in range(CODE_BLOCK, CODES, CODE_BLOCK):
            later = block + code
            more = tl.load(row_logits + later, mask=later < CODES, other=-float("inf"))
            logit = more.to(tl.float32)
            if PRIOR:
                logit += tl.load(prior + later, mask=later < CODES, other=0.0)
            new = tl.maximum(largest, tl.max(logit, axis=0))
            total = total * tl.exp(largest - new) + tl.sum(tl.exp(logit - new), axis=0)
            largest = new
        # The sum holds exp(0), so no log-probability exceeds zero.
        normaliser = largest + tl.maximum(tl.log(total), 0.0)

        count = end - first
        if address != 0:
            count = 0
        counter = counters + query * COUNTERS + _GROUPS_LISTED
        room = query.to(tl.int64) * group_room
        while start < end:
            level_score = _level_scores(codes_here, allowed, row_logits, normaliser, prior, PRIOR)
            if address != 0:
                count += tl.sum(tl.sum(allowed.to(tl.int32), axis=1), axis=0)
            top = tl.max(score + level_score, axis=1)
            number = _bin(best, top, BINS)
            alive = top > -float("inf")
            tl.atomic_add(histogram + query * BINS + number, 1, mask=alive, sem="relaxed")
            flag, place = _append(counter, alive, STRIDE)
            size = (tl.minimum(end - start, TILE) - lane + STRIDE - 1) // STRIDE
            tl.store(group_bins + room + place, number, mask=flag)
            tl.store(group_children + room + place, start + lane, mask=flag)
            tl.store(group_rows + room + place, (row << _SIZE_BITS) | size, mask=flag)
            start += SPLITS * TILE
            if start < end:
                allowed, codes_here = _codes_at(
                    start + member, start + member < end, codes, address
                )
        if SPLITS > 1 and address != 0 and split == 0:
            # The other programs of the row count their children for themselves only.
            count = 0
            for part in range(first, end, TILE):
                other = part + tl.arange(0, TILE)
                count += tl.sum(_allowed(address, other, other < end).to(tl.int32), axis=0)
        if split == 0:
            tl.store(row_branching + query * width + row, count)
            tl.store(row_normaliser + query * width + row, normaliser)


@triton.jit
def _collect_kernel(
    logits,
    query_stride,
    row_stride,
    scores,
    prior,
    codes,
    filter_table,
    widths,
    row_normaliser,
    keys,
    key_rows,
    key_levels,
    group_bins,
    group_children,
    group_rows,
    histogram,
    counters,
    rows,
    level,
    levels,
    size,
    width,
    programs,
    candidate_room,
    group_room,
    CHUNK: tl.constexpr,
    SLOTS: tl.constexpr,
    GROUP: tl.constexpr,
    STRIDE: tl.constexpr,
    BINS: tl.constexpr,
    COUNTERS: tl.constexpr,
    PRIOR: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    program = tl.program_id(0)
    query = program // programs
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
    wanted = tl.minimum(tl.load(widths + query), width)
    listed = tl.load(counters + query * COUNTERS + _GROUPS_LISTED)
    best = _best_of(scores, query, rows)
    address = tl.load(filter_table + query * levels + level)
    seen = tl.cumsum(tl.load(histogram + query * BINS + tl.arange(0, BINS)), 0)
    bound = tl.sum((seen < wanted).to(tl.int32), axis=0)
    prior += query * size
    query_logits = logits + query.to(tl.int64) * query_stride
    group_base = query.to(tl.int64) * group_room
    group_bins += group_base
    group_children += group_base
    group_rows += group_base
    # Nothing is loaded for want of the list's length: what lies beyond it is not used.
    for start in range(program % programs * CHUNK, group_room, programs * CHUNK):
        place = start + tl.arange(0, CHUNK)
        inside = place < group_room
        number = tl.load(group_bins + place, mask=inside, other=0)
        firsts = tl.load(group_children + place, mask=inside, other=0)
        packed = tl.load(group_rows + place, mask=inside, other=0)
        chosen = (place < listed) & (number <= bound)
        order = tl.cumsum(chosen.to(tl.int32), 0) - 1
        count = tl.sum(chosen.to(tl.int32), axis=0)
        for done in range(0, count, SLOTS):
            slot = done + tl.arange(0, SLOTS)
            hit = chosen[:, None] & (order[:, None] == slot[None, :])
            source = tl.sum(tl.where(hit, tl.arange(0, CHUNK)[:, None], 0), axis=0)
            first = tl.gather(firsts, source, 0)
            row = tl.where(slot < count, tl.gather(packed, source, 0), 0)
            member = tl.arange(0, GROUP)[:, None]
            asked = member < (row & _SIZE_MASK)[None, :]
            row = row >> _SIZE_BITS
            score = tl.load(scores + query * rows + row)
            normaliser = tl.load(row_normaliser + query * width + row)
            row_logits = query_logits + row.to(tl.int64) * row_stride
            child = first[None, :] + STRIDE * member
            allowed, code = _codes_at(child, asked, codes, address)
            level_score = _level_scores(
                code, allowed, row_logits[None, :], normaliser[None, :], prior, PRIOR
            )
            total = score[None, :] + level_score
            alive = (total > -float("inf")) & (_bin(best, total, BINS) <= bound)
            _list_candidates(
                query, row, child, total, level_score, keys, key_rows, key_levels, alive,
                counters, candidate_room, SLOTS, GROUP, COUNTERS,
            )  # fmt: skip


@triton.jit
def _unsigned(key):
    return key.to(tl.uint64, bitcast=True) ^ (tl.full([1], 1, tl.uint64) << 63)


@triton.jit
def _kth_largest(keys, count, wanted, BLOCK: tl.constexpr):
    """The `wanted`-th largest of `count` keys as an unsigned (1,), eight bits at a time."""
    prefix = tl.zeros([1], dtype=tl.uint64)
    shift = tl.full([1], 56, tl.uint64)
    digit = tl.arange(0, 256)
    for _ in range(8):
        found = tl.zeros([256], dtype=tl.int32)
        for start in range(0, count, BLOCK):
            place = start + tl.arange(0, BLOCK)
            key = _unsigned(tl.load(keys + place, mask=place < count, other=0)) >> shift
            same = (place < count) & ((key >> 8) == prefix)
            found += tl.histogram((key & 255).to(tl.int32), 256, mask=same)
        above = tl.sum(found, axis=0) - tl.cumsum(found, 0)
        here = (above < wanted) & (above + found >= wanted)
        wanted -= tl.sum(tl.where(here, above, 0), axis=0)
        prefix = (prefix << 8) | tl.sum(tl.where(here, digit, 0), axis=0).to(tl.uint64)
        shift -= 8
    return prefix


@triton.jit
def _rank_kernel(
    codes,
    widths,
    row_branching,
    keys,
    key_rows,
    key_levels,
    histogram,
    counters,
    out_nodes,
    out_parents,
    out_codes,
    out_scores,
    out_level_scores,
    out_branching,
    out_counts,
    width,
    programs,
    candidate_room,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    FILL: tl.constexpr,
    CLEAR: tl.constexpr,
    BINS: tl.constexpr,
    COUNTERS: tl.constexpr,
    LIMIT: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    program = tl.program_id(0)
    query = program // programs
    part = program % programs
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
    counter = counters + query * COUNTERS
    listed = tl.load(counter + _CANDIDATES_LISTED)
    kept = tl.minimum(tl.minimum(tl.load(widths + query), width), listed)
    base = query.to(tl.int64) * candidate_room
    keys += base
    key_rows += base
    key_levels += base
    number = part * CLEAR + tl.arange(0, CLEAR)
    tl.store(histogram + query * BINS + number, tl.zeros([CLEAR], tl.int32), mask=number < BINS)
    # The last program to have read the counters clears them: nobody waits for it.
    tl.debug_barrier()
    if tl.atomic_add(counter + _RANKS_STARTED, 1) == programs - 1:
        tl.store(out_counts + query, kept)
        tl.store(counter + tl.arange(0, COUNTERS), tl.zeros([COUNTERS], tl.int32))
    least = tl.zeros([1], dtype=tl.uint64)
    if listed > LIMIT:
        least = _kth_largest(keys, listed, kept, 512)
    for start in range(part * CHUNK, listed, programs * CHUNK):
        place = start + tl.arange(0, CHUNK)
        key = tl.load(keys + place, mask=place < listed, other=0)
        alive = (place < listed) & (_unsigned(key) >= least)
        if tl.max(alive.to(tl.int32), axis=0) > 0:
            row = tl.load(key_rows + place, mask=alive, other=0)
            level_score = tl.load(key_levels + place, mask=alive, other=0.0)
            child = ~key.to(tl.int32)
            code = tl.load(codes + child, mask=alive, other=0).to(tl.int32)
            branching = tl.load(row_branching + query * width + row, mask=alive, other=0)
            larger = tl.zeros([CHUNK, BLOCK], dtype=tl.int32)
            for other_start in range(0, listed, BLOCK):
                other_place = other_start + tl.arange(0, BLOCK)
                other = tl.load(keys + other_place, mask=other_place < listed, other=_LEAST_KEY)
                larger += (other[None, :] > key[:, None]).to(tl.int32)
            rank = tl.sum(larger, axis=1)
            target = query * width + rank
            won = alive & (rank < kept)
            tl.store(out_nodes + target, child, mask=won)
            tl.store(out_parents + target, row, mask=won)
            tl.store(out_codes + target, code, mask=won)
            tl.store(out_scores + target, _score_of((key >> 32).to(tl.int32)), mask=won)
            tl.store(out_level_scores + target, level_score, mask=won)
            tl.store(out_branching + target, branching, mask=won)
    place = part * FILL + tl.arange(0, FILL)
    empty = (place >= kept) & (place < width)
    target = query * width + place
    tl.store(out_nodes + target, tl.full([FILL], -1, tl.int32), mask=empty)
    tl.store(out_parents + target, tl.full([FILL], -1, tl.int32), mask=empty)
    tl.store(out_codes + target, tl.full([FILL], -1, tl.int32), mask=empty)
    minus_infinity = tl.full([FILL], -float("inf"), tl.float32)
    tl.store(out_scores + target, minus_infinity, mask=empty)
    tl.store(out_level_scores + target, minus_infinity, mask=empty)
    tl.store(out_branching + target, tl.zeros([FILL], tl.int32), mask=empty)
