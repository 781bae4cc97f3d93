"""The kernels of the expansion on the GPU; decoding/cuda/expand.py says how they work together.

Nodes and scores (Q, R) are the beams; normalisers and branching (Q, W), one per row, are written by
score. Lists (Q, room) of groups and of candidates have their lengths in counters (Q, 4); histograms
are (Q, BINS). Tiles of several rows are (children, rows): neighbouring threads read neighbouring
children.
"""

# Triton's language is untyped; kernels are exempt from the type checker.
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportIndexIssue=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportOptionalOperand=false, reportGeneralTypeIssues=false, reportCallIssue=false
from __future__ import annotations

import triton
import triton.language as tl

# Numbers of the counters of a query.
_GROUPS_LISTED = tl.constexpr(0)
_CANDIDATES_LISTED = tl.constexpr(1)
_RANKS_STARTED = tl.constexpr(2)
_LEAST_KEY = tl.constexpr(-(1 << 63))
# Groups have at most 32 children: a size, and a row above it, are one number.
_SIZE_BITS = tl.constexpr(6)
_SIZE_MASK = tl.constexpr(63)
# Bins of the distance from the best score: 64 per octave from 2**-9 to 2**7.
_BIN_SHIFT = tl.constexpr(17)
_FIRST_BIN = tl.constexpr((127 - 9) << 6)


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
def score_children_kernel(
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
def score_groups_kernel(
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
def collect_kernel(
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
def rank_kernel(
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
