"""Of the compiled expansion: what the chosen candidates of a beam stand for, best first.

Candidates come in any order; sorted by SID they get their ranks and share their parents' look-ups,
sorted by score their places.
"""

# To the type checker an element of an array may be an array, and intrinsics take one argument more.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray, njit
from numpy.typing import NDArray

from decoding.candidates import LOW_HALF, bits_of_code, score_of, sort_by_byte
from decoding.children import (
    ADDED,
    ADDED_CODES,
    FIRST_LOGITS,
    FIRST_ROW,
    FIRST_SLOT,
    PRIOR,
    ROWS,
    LevelArrays,
    Rows,
    added_run,
    allowed_of,
    count_allowed,
    find_code,
    only_child_allowed,
    pointer,
    uncounted,
)
from decoding.softmax import Floats
from index.trie import Nodes


class Grown(NamedTuple):
    """The kept prefixes; a beam's begin at its slot. `parents` are rows of the beam, `sources` rows
    of the logits; `counts` int64 (beams,) is how many each beam has."""

    nodes: Nodes
    parents: Nodes
    sources: Nodes
    codes: Nodes
    scores: Floats
    level_scores: Floats
    branching: NDArray[np.int32]
    ranks: Nodes
    counts: Nodes


@njit(nogil=True)
def emit(
    beam: int,
    table: Nodes,
    level: LevelArrays,
    rows: Rows,
    logits: Floats,
    priors: Floats,
    keys: NDArray[np.uint64],
    grown: Grown,
) -> None:
    """Writes what the chosen keys (m,), in any order, stand for."""
    count = len(keys)
    grown.counts[beam] = count
    if not count:
        return
    codebook = logits.shape[1]
    code_bits = np.uint64(bits_of_code(codebook))
    code_mask = (np.uint64(1) << code_bits) - np.uint64(1)
    first_row, n_rows = table[FIRST_ROW], table[ROWS]
    allowed = allowed_of(table, len(level.codes))
    only_allowed = only_child_allowed(table, level.shift)
    row_of_rank = np.empty(n_rows, dtype=np.int64)
    for row in range(first_row, first_row + n_rows):
        row_of_rank[rows.ranks[row]] = row
    rank_bits = bits_of_code(n_rows)
    # First into SID order, which gives the ranks, then by score: both sorts are stable.
    spare = np.empty(count, dtype=np.uint64)
    sort_by_byte(keys, spare, 0, np.int64(code_bits) + rank_bits)
    ties = np.empty(count, dtype=np.uint64)
    place_of = np.empty(count, dtype=np.int64)
    for rank in range(count):
        ties[rank] = keys[rank] & LOW_HALF
        keys[rank] = (keys[rank] & ~LOW_HALF) | np.uint64(rank)
    sort_by_byte(keys, spare, 32, 32)
    slot = table[FIRST_SLOT]
    for place in range(count):
        rank = np.int64(keys[place] & LOW_HALF)
        grown.scores[slot + place] = score_of(keys[place])
        grown.ranks[slot + place] = rank
        place_of[rank] = slot + place
    codes, n_base = uncounted(level.codes), len(level.codes)
    firsts, ends, nodes = uncounted(rows.first), uncounted(rows.end), uncounted(rows.nodes)
    parent, branches = -1, 0
    first, end, first_added, end_added = 0, 0, 0, 0
    # Children of one parent stand together in SID order.
    for rank in range(count):
        row = row_of_rank[ties[rank] >> code_bits]
        code = np.int64(ties[rank] & code_mask)
        if row != parent:
            parent = row
            first, end = firsts[row], ends[row]
            branches = 1
            if not (only_allowed and end == first + 1):
                branches = count_allowed(allowed, first, end)
            if table[ADDED]:
                first_added, end_added = added_run(table, nodes[row])
                branches += count_allowed(allowed, n_base + first_added, n_base + end_added)
        node = find_code(codes, first, end, codebook, code)
        if node < 0:
            added = carray(pointer(table[ADDED_CODES]), (end_added,), dtype=np.uint16)
            node = n_base + find_code(added, first_added, end_added, codebook, code)
        place = place_of[rank]
        source = table[FIRST_LOGITS] + row - first_row
        value = logits[source, code]
        if table[PRIOR] >= 0:
            value += priors[table[PRIOR], code]
        grown.nodes[place] = node
        grown.parents[place] = row - first_row
        grown.sources[place] = source
        grown.codes[place] = code
        grown.level_scores[place] = (value - rows.maximum[row]) - rows.log_sum[row]
        grown.branching[place] = branches
