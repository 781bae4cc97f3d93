"""The compiled core of the expansion: what `expand` and `grow_all` run on CPU.

Many beams are grown by one call. For each, rows are visited best first; a row's log-softmax over
the whole codebook is fused in as its maximum and the logarithm of its sum, and only the scores of
children that can still win are computed:

- log-probabilities are not positive, so once `width` candidates are known, rows whose own score is
  below the worst of them are not even normalised;
- a row with many children looks for codes above the bound first, block by block, and asks the trie
  for those alone, so its cost hardly depends on the size of the catalogue.

A candidate is one integer, the better the smaller: its score, mapped so that integers sort as
floats do, above (rank of its parent's SID among the rows, code). That is the order of the result,
ties included, and it needs no node numbers. A score of -inf is dead: such rows have no children,
such candidates are not kept, and NaN counts as dead.

Row arithmetic is in decoding/softmax.py, candidates in decoding/candidates.py, and what a row's
children are in decoding/children.py.
"""

# To the type checker an element of an array may be an array, and intrinsics take one argument more.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray, njit
from numpy.typing import NDArray

from decoding.candidates import (
    LOWEST,
    WORST,
    bits_of_code,
    buffer_size,
    keep,
    keep_smallest,
    score_of,
    score_of_bound,
    worse,
)
from decoding.children import (
    ADDED,
    ADDED_CODES,
    FIRST_LOGITS,
    FIRST_ROW,
    PRIOR,
    ROWS,
    WIDTH,
    LevelArrays,
    Rows,
    added_run,
    allowed_of,
    block_allowed,
    count_allowed,
    find_code,
    only_child_allowed,
    pointer,
    set_bits,
    trailing_zeros,
    uncounted,
)
from decoding.softmax import BLOCK, Floats, as_ordered, block_maxima, codes_above, log_sum_of
from index.trie import Codes, Nodes

# Rows with more children may be searched from the codes, not from the children: where finding the
# marked codes among the children costs less than looking at each child.
_MANY_CHILDREN = 96
_FIND_COST = 16
_MINUS_INFINITY = np.float32(-np.inf)
# Puts -0 above a threshold that would be 0.
_TINY = np.float32(1e-30)


class Row(NamedTuple):
    """One row while it is visited: its values (K,), prior included, its own score, the maximum and
    the log-sum of its softmax, and the part of a key that says which row it is."""

    values: Floats
    score: np.float32
    maximum: np.float32
    log_sum: np.float32
    tie: np.uint64


class Scratch(NamedTuple):
    """Room for one beam at a time: the values of a row with its prior (K,), the maxima and marks of
    its blocks, and candidates."""

    values: Floats
    blocks: NDArray[np.int32]
    marks: NDArray[np.uint64]
    keys: NDArray[np.uint64]


@njit(nogil=True)
def new_scratch(width: int, codebook: int) -> Scratch:
    """Room for beams up to a width over so many codes."""
    values = np.empty(codebook, dtype=np.float32)
    blocks = (codebook + BLOCK - 1) // BLOCK
    maxima, marks = np.empty(blocks, dtype=np.int32), np.empty(blocks, dtype=np.uint64)
    return Scratch(values, maxima, marks, np.empty(buffer_size(width), dtype=np.uint64))


@njit(nogil=True, inline="always")
def _row_of(matrix: Floats, row: int) -> Floats:
    """A row of a matrix that the caller keeps, without counting references."""
    width = matrix.shape[1]
    return carray(pointer(matrix.ctypes.data + 4 * row * width), (width,), dtype=np.float32)


@njit(nogil=True)
def _best_first(table: Nodes, rows: Rows) -> Nodes:
    """The live rows of a beam, best first."""
    first, count = table[FIRST_ROW], table[ROWS]
    order = np.empty(count, dtype=np.int64)
    live = 0
    ordered = True
    for row in range(first, first + count):
        if rows.scores[row] > _MINUS_INFINITY:
            ordered &= live == 0 or rows.scores[row] <= rows.scores[order[live - 1]]
            order[live] = row
            live += 1
    order = order[:live]
    if not ordered:
        order = order[np.argsort(-rows.scores[order])]
    return order


@njit(nogil=True)
def _threshold(row: Row, bound: np.uint64) -> np.float32:
    """A value below which no code of the row wins; -inf while everything may."""
    if bound == WORST:
        return _MINUS_INFINITY
    score = score_of(bound)
    # Four roundings lie between a value and its candidate's score; each is far below this slack.
    size = abs(row.score) + abs(score) + abs(row.maximum) + row.log_sum
    slack = np.float32(1e-6) * size + _TINY
    return np.float32(score - row.score + row.log_sum + row.maximum - slack)


@njit(nogil=True)
def _scan(
    row: Row,
    codes: Codes,
    first: int,
    end: int,
    filtered: bool,
    allowed: NDArray[np.uint8],
    first_allowed: int,
    buffer: NDArray[np.uint64],
    count: int,
    bound: np.uint64,
    width: int,
) -> tuple[int, np.uint64]:
    """Considers the children codes[first:end]; if `filtered`, codes[i] is legal where
    allowed[first_allowed + i]."""
    threshold = _threshold(row, bound)
    if filtered:
        for block in range(first, end, BLOCK):
            word = block_allowed(
                allowed, first_allowed + block, first_allowed + min(end, block + BLOCK)
            )
            while word:
                code = codes[np.uint64(block) + trailing_zeros(word)]
                word &= word - np.uint64(1)
                value = row.values[code]
                if not value >= threshold:
                    continue
                total = row.score + ((value - row.maximum) - row.log_sum)
                key = (worse(total) << np.uint64(32)) | row.tie | np.uint64(code)
                # -inf and NaN are dead.
                if total >= LOWEST and key < bound:
                    count, bound = keep(buffer, count, bound, width, key)
                    threshold = _threshold(row, bound)
        return count, bound
    # Unsigned, since else each index is checked for counting from the end.
    for position in range(np.uint64(first), np.uint64(end)):
        code = codes[position]
        value = row.values[code]
        if not value >= threshold:
            continue
        total = row.score + ((value - row.maximum) - row.log_sum)
        key = (worse(total) << np.uint64(32)) | row.tie | np.uint64(code)
        # -inf and NaN are dead.
        if total >= LOWEST and key < bound:
            count, bound = keep(buffer, count, bound, width, key)
            threshold = _threshold(row, bound)
    return count, bound


@njit(nogil=True)
def _mark(row: Row, bound: np.uint64, blocks: NDArray[np.int32], marks: NDArray[np.uint64]) -> int:
    """Marks the codes, legal or not, that may win: one bit each, a word per block. Returns how
    many there are."""
    threshold = _threshold(row, bound)
    least = as_ordered(np.float32(threshold).view(np.int32))
    marked = np.uint64(0)
    for block in range(len(blocks)):
        marks[block] = np.uint64(0)
        if blocks[block] >= least:
            marks[block] = codes_above(row.values, block * BLOCK, threshold)
            marked += set_bits(marks[block])
    return int(marked)


@njit(nogil=True)
def _search(
    row: Row,
    marks: NDArray[np.uint64],
    codes: Codes,
    first: int,
    end: int,
    allowed: NDArray[np.uint8],
    buffer: NDArray[np.uint64],
    count: int,
    bound: np.uint64,
    width: int,
) -> tuple[int, np.uint64]:
    """Considers those of the children codes[first:end] whose codes are marked."""
    filtered = len(allowed) > 0
    bound_score = score_of_bound(bound)
    for block in range(len(marks)):
        above = marks[block]
        while above:
            code = block * BLOCK + np.int64(trailing_zeros(above))
            above &= above - np.uint64(1)
            total = row.score + ((row.values[code] - row.maximum) - row.log_sum)
            if not total >= bound_score:
                continue
            key = (worse(total) << np.uint64(32)) | row.tie | np.uint64(code)
            if key >= bound:
                continue
            node = find_code(codes, first, end, len(row.values), code)
            if node >= 0 and (not filtered or allowed[node]):
                count, bound = keep(buffer, count, bound, width, key)
                bound_score = score_of_bound(bound)
    return count, bound


@njit(nogil=True)
def select(
    table: Nodes,
    part: int,
    bounds: NDArray[np.uint64],
    level: LevelArrays,
    rows: Rows,
    logits: Floats,
    priors: Floats,
    normalised: bool,
    scratch: Scratch,
) -> int:
    """The best candidates of every n-th of a beam's live rows, from `part` on, best row first, into
    scratch.keys[:width] in any order; returns how many there are.

    `bounds` uint64 (n,), at first WORST: each part's bound, for all to read. Candidates from any of
    them on may be left out.
    """
    codebook = logits.shape[1]
    code_bits = bits_of_code(codebook)
    width = table[WIDTH]
    n_base = len(level.codes)
    allowed = allowed_of(table, n_base)
    filtered, only_allowed = len(allowed) > 0, only_child_allowed(table, level.shift)
    own = uncounted(scratch.values)
    blocks, marks = uncounted(scratch.blocks), uncounted(scratch.marks)
    buffer = uncounted(scratch.keys)[: buffer_size(width)]
    # Keys from the bound on cannot win: `width` better ones were seen.
    count, bound = 0, WORST
    order = _best_first(table, rows)
    codes = uncounted(level.codes)
    nodes, scores, ranks = uncounted(rows.nodes), uncounted(rows.scores), uncounted(rows.ranks)
    firsts, ends = uncounted(rows.first), uncounted(rows.end)
    maxima, log_sums = uncounted(rows.maximum), uncounted(rows.log_sum)
    parts = len(bounds)
    for place in range(part, len(order), parts):
        if parts > 1:
            bounds[part] = bound
            for other in range(parts):
                bound = min(bound, bounds[other])
        row = order[place]
        score = scores[row]
        if score < score_of_bound(bound):
            break
        first, end = firsts[row], ends[row]
        first_added, end_added = added_run(table, nodes[row]) if table[ADDED] else (0, 0)
        if first == end and first_added == end_added:
            continue
        values = _row_of(logits, row - table[FIRST_ROW] + table[FIRST_LOGITS])
        if table[PRIOR] >= 0:
            prior = _row_of(priors, table[PRIOR])
            for code in range(codebook):
                own[code] = values[code] + prior[code]
            values = own
        possible = end - first
        if filtered and possible > _MANY_CHILDREN:
            possible = count_allowed(allowed, first, end)
        many = bound != WORST and possible > _MANY_CHILDREN
        maximum, log_sum = np.float32(0.0), np.float32(0.0)
        if not normalised or many:
            largest = block_maxima(values, blocks)
            if not normalised:
                maximum, log_sum = largest, log_sum_of(values, largest)
                # The best code's log-probability is -log_sum.
                if score - log_sum < score_of_bound(bound):
                    continue
        maxima[row], log_sums[row] = maximum, log_sum
        tie = np.uint64(ranks[row]) << np.uint64(code_bits)
        one = Row(values, score, maximum, log_sum, tie)
        if many and _FIND_COST * _mark(one, bound, blocks, marks) < possible:
            count, bound = _search(
                one, marks, codes, first, end, allowed, buffer, count, bound, width
            )
        else:
            count, bound = _scan(
                one,
                codes,
                first,
                end,
                filtered and not (only_allowed and end == first + 1),
                allowed,
                0,
                buffer,
                count,
                bound,
                width,
            )
        if first_added < end_added:
            added = carray(pointer(table[ADDED_CODES]), (end_added,), dtype=np.uint16)
            count, bound = _scan(
                one,
                added,
                first_added,
                end_added,
                filtered,
                allowed,
                n_base,
                buffer,
                count,
                bound,
                width,
            )
    if count > width:
        keep_smallest(buffer, count, width)
        count = width
    return count
