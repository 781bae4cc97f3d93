"""Of the compiled expansion: all beams of a wave by one level, shared among a team's threads.

Many beams are dealt out whole. The rows of few are: each thread chooses the best of every n-th row,
knows what the others have found by then, and the best of all are picked from what is left.
"""

# To the type checker an element of an array may be an array, and intrinsics take one argument more.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false
from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from decoding import candidates, children, emission, selection, softmax, team
from decoding.candidates import WORST, keep_smallest
from decoding.children import ROWS, WIDTH, LevelArrays, Rows, find_children
from decoding.emission import Grown, emit
from decoding.selection import new_scratch, select
from decoding.softmax import Floats
from decoding.team import Team, shared
from index.trie import Codes, Nodes

# Numbers of logits from which on the rows of few beams are worth a team.
_WORTH_SHARING = 1 << 15


@njit(nogil=True)
def _grow_whole(
    first_beam: int,
    end_beam: int,
    tables: Nodes,
    level: LevelArrays,
    rows: Rows,
    logits: Floats,
    priors: Floats,
    normalised: bool,
    grown: Grown,
) -> None:
    """Grows the beams [first_beam, end_beam), each by one thread."""
    scratch = new_scratch(tables[first_beam:end_beam, WIDTH].max(), logits.shape[1])
    bounds = np.full(1, WORST)
    for beam in range(first_beam, end_beam):
        table = tables[beam]
        find_children(table, level, rows)
        bounds[0] = WORST
        count = select(table, 0, bounds, level, rows, logits, priors, normalised, scratch)
        emit(beam, table, level, rows, logits, priors, scratch.keys[:count], grown)


_share_whole = shared(_grow_whole)


@njit(nogil=True)
def _select_parts(
    first_part: int,
    end_part: int,
    table: Nodes,
    bounds: NDArray[np.uint64],
    level: LevelArrays,
    rows: Rows,
    logits: Floats,
    priors: Floats,
    normalised: bool,
    keys: NDArray[np.uint64],
    counts: Nodes,
) -> None:
    """The best of each part of a beam's rows, `keys` uint64 (parts, width) and their `counts`."""
    scratch = new_scratch(table[WIDTH], logits.shape[1])
    for part in range(first_part, end_part):
        count = select(table, part, bounds, level, rows, logits, priors, normalised, scratch)
        keys[part, :count] = scratch.keys[:count]
        counts[part] = count


_share_parts = shared(_select_parts)


@njit(nogil=True)
def _grow_shared(
    team: Team,
    beam: int,
    tables: Nodes,
    level: LevelArrays,
    rows: Rows,
    logits: Floats,
    priors: Floats,
    normalised: bool,
    grown: Grown,
) -> None:
    """Grows one beam by all threads."""
    table, parts = tables[beam], team.threads
    width = table[WIDTH]
    find_children(table, level, rows)
    bounds = np.full(parts, WORST)
    found, counts = np.empty((parts, width), dtype=np.uint64), np.empty(parts, dtype=np.int64)
    arguments = (table, bounds, level, rows, logits, priors, normalised, found, counts)
    _share_parts(team, 0, parts, arguments)
    keys = np.empty(counts.sum(), dtype=np.uint64)
    count = 0
    for part in range(parts):
        keys[count : count + counts[part]] = found[part, : counts[part]]
        count += counts[part]
    if count > width:
        keep_smallest(keys, count, width)
        count = width
    emit(beam, table, level, rows, logits, priors, keys[:count], grown)


@njit(nogil=True)
def _grow_beams(
    team: Team,
    tables: Nodes,
    codes: Codes,
    start_base: NDArray[np.uint32],
    start_delta: NDArray[np.uint16],
    shift: int,
    nodes: Nodes,
    scores: Floats,
    ranks: Nodes,
    logits: Floats,
    priors: Floats,
    normalised: bool,
    whole: Nodes,
    real: Floats,
    branching: NDArray[np.int32],
    counts: Nodes,
) -> None:
    """Grows the beams of the table, int64 (beams, COLUMNS), by one level.

    `codes`, `start_base`, `start_delta`, `shift`: the base trie at this level: the codes of its
    nodes, and the compact starts of the level above (empty arrays and -1 at level 0, whose nodes
    are the root's children). `nodes` int64, `scores` float32, `ranks` int64 of the SIDs within
    their beam: all rows (rows,). `logits` float32 (logit rows, K); `priors` float32 (priors, K),
    added first; `normalised`: the logits are log-probabilities already, all ≤ 0.

    Written are, from each beam's slot on: `whole` int64 (5, slots): nodes, parents as rows of the
    beam, parents as rows of the logits, codes, ranks; `real` float32 (2, slots): scores and the
    step's log-probabilities; `branching` int32 (slots,); and `counts` int64 (beams,), how many.
    """
    n_rows, n_beams = len(nodes), len(tables)
    level = LevelArrays(codes, start_base, start_delta, shift)
    ends = np.empty((2, n_rows), dtype=np.int64)
    softmax = np.empty((2, n_rows), dtype=np.float32)
    rows = Rows(nodes, scores, ranks, ends[0], ends[1], softmax[0], softmax[1])
    grown = Grown(
        whole[0], whole[1], whole[2], whole[3], real[0], real[1], branching, whole[4], counts
    )
    arguments = (tables, level, rows, logits, priors, normalised, grown)
    if team.threads == 1 or n_rows * logits.shape[1] < _WORTH_SHARING:
        _grow_whole(0, n_beams, *arguments)
    elif n_beams >= 2 * team.threads:
        _share_whole(team, 0, n_beams, arguments)
    else:
        for beam in range(n_beams):
            if tables[beam, ROWS] >= 2 * team.threads:
                _grow_shared(team, beam, *arguments)
            else:
                _grow_whole(beam, beam + 1, *arguments)


def _fingerprint() -> int:
    """Of the sources that are compiled together; not 0."""
    modules = (softmax, candidates, children, selection, emission, team)
    parts = [*(str(module.__file__) for module in modules), __file__]
    return 1 + zlib.crc32(b"".join(Path(part).read_bytes() for part in parts))


def _cached(fingerprint: int) -> Callable[..., None]:
    # Numba's cache knows a function by its own file and by what it closes over: without the
    # fingerprint a change in another file would not be seen. So this function alone is cached.
    @njit(cache=True, nogil=True)
    def grow_beams(
        team: Team,
        tables: Nodes,
        codes: Codes,
        start_base: NDArray[np.uint32],
        start_delta: NDArray[np.uint16],
        shift: int,
        nodes: Nodes,
        scores: Floats,
        ranks: Nodes,
        logits: Floats,
        priors: Floats,
        normalised: bool,
        whole: Nodes,
        real: Floats,
        branching: NDArray[np.int32],
        counts: Nodes,
    ) -> None:
        if fingerprint:
            _grow_beams(
                team,
                tables,
                codes,
                start_base,
                start_delta,
                shift,
                nodes,
                scores,
                ranks,
                logits,
                priors,
                normalised,
                whole,
                real,
                branching,
                counts,
            )

    return grow_beams


# As `_grow_beams`, which says what the arguments are.
grow_beams = _cached(_fingerprint())
