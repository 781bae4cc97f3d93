"""The decoder's arithmetic between its matrix products, each piece in one pass over the rows.

Arrays are float32 or bfloat16 (decoding/native/numbers.py); sums and functions are float32 in
either case. Rows of queries lie in slots (see rows.py): head h of row r is at
first[r] + h·stride[r].

Kernels release the interpreter lock and share their rows among a team's threads (decoding/team.py):
each is a loop over a part of the rows, and the function after it that shares it.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from decoding.native.numbers import LOOP, ONE, ZERO, Array, Floats, exponential, put, wide
from decoding.team import Team, shared

Indices = NDArray[np.int64]

_SMALLEST = np.int32(-0x7F000000)


@njit(**LOOP)
def _normalise(
    begin: int, end: int, state: Floats, weight: Floats, epsilon: float, out: Array
) -> None:
    width = state.shape[1]
    for row in range(begin, end):
        line, target = state[row], out[row]
        total = ZERO
        for i in range(width):
            total += line[i] * line[i]
        scale = ONE / np.sqrt(np.float32(total / np.float32(width) + np.float32(epsilon)))
        for i in range(width):
            put(target, i, line[i] * scale * weight[i])


_share_normalise = shared(_normalise)


@njit(cache=True, nogil=True)
def normalise(team: Team, state: Floats, weight: Floats, epsilon: float, out: Array) -> None:
    """RMSNorm of `state` (rows, d) into `out` (rows, d)."""
    _share_normalise(team, 0, len(state), (state, weight, epsilon, out))


@njit(**LOOP)
def _add_and_normalise(
    begin: int, end: int, state: Floats, change: Array, weight: Floats, epsilon: float, out: Array
) -> None:
    width = state.shape[1]
    for row in range(begin, end):
        line, more, target = state[row], change[row], out[row]
        total = ZERO
        for i in range(width):
            value = line[i] + wide(more[i])
            line[i] = value
            total += value * value
        scale = ONE / np.sqrt(np.float32(total / np.float32(width) + np.float32(epsilon)))
        for i in range(width):
            put(target, i, line[i] * scale * weight[i])


_share_add_and_normalise = shared(_add_and_normalise)


@njit(cache=True, nogil=True)
def add_and_normalise(
    team: Team, state: Floats, change: Array, weight: Floats, epsilon: float, out: Array
) -> None:
    """state += change, both (rows, d); then its RMSNorm into `out`."""
    _share_add_and_normalise(team, 0, len(state), (state, change, weight, epsilon, out))


# Below, heads are seen as two halves, (…, 2, D / 2), which is how rotation pairs them. Loops are
# kept small and over few arrays: where the compiler has more than a few overlaps to rule out, or a
# view to count, none of it is vectorised.


@njit(**LOOP)
def _place_queries(
    begin: int,
    end: int,
    projected: Array,
    weight: Floats,
    epsilon: float,
    cosine: Floats,
    sine: Floats,
    positions: Indices,
    first: Indices,
    stride: Indices,
    out: Array,
) -> None:
    heads, _, half = weight.shape
    low, high = np.empty(half, dtype=np.float32), np.empty(half, dtype=np.float32)
    for row in range(begin, end):
        at = positions[row]
        for head in range(heads):
            slot = first[row] + head * stride[row]
            total = ZERO
            for i in range(half):
                low[i] = wide(projected[row, head, 0, i])
                high[i] = wide(projected[row, head, 1, i])
                total += low[i] * low[i] + high[i] * high[i]
            mean = np.float32(total / np.float32(2 * half))
            scale = ONE / np.sqrt(np.float32(mean + np.float32(epsilon)))
            for i in range(half):
                low[i] *= scale * weight[head, 0, i]
            for i in range(half):
                high[i] *= scale * weight[head, 1, i]
            for i in range(half):
                put(out, (slot, 0, i), low[i] * cosine[at, i] - high[i] * sine[at, i])
            for i in range(half):
                put(out, (slot, 1, i), high[i] * cosine[at, i] + low[i] * sine[at, i])


_share_place_queries = shared(_place_queries)


@njit(cache=True, nogil=True)
def place_queries(
    team: Team,
    projected: Array,
    weight: Floats,
    epsilon: float,
    cosine: Floats,
    sine: Floats,
    positions: Indices,
    first: Indices,
    stride: Indices,
    out: Array,
) -> None:
    """Query heads, normalised and rotated, into their slots.

    `projected` (rows, ≥ H, 2, D / 2), queries first; `weight` (H, 2, D / 2); `cosine`, `sine`
    (positions, D / 2); `out` (slots, 2, D / 2).
    """
    _share_place_queries(
        team,
        0,
        len(projected),
        (projected, weight, epsilon, cosine, sine, positions, first, stride, out),
    )


@njit(**LOOP)
def _place_keys(
    begin: int,
    end: int,
    projected: Array,
    queries: int,
    weight: Floats,
    epsilon: float,
    cosine: Floats,
    sine: Floats,
    positions: Indices,
    first: Indices,
    stride: Indices,
    keys: Array,
    values: Array,
) -> None:
    heads, _, half = weight.shape
    low, high = np.empty(half, dtype=np.float32), np.empty(half, dtype=np.float32)
    for row in range(begin, end):
        at = positions[row]
        for head in range(heads):
            slot = first[row] + head * stride[row]
            source = queries + head
            total = ZERO
            for i in range(half):
                low[i] = wide(projected[row, source, 0, i])
                high[i] = wide(projected[row, source, 1, i])
                total += low[i] * low[i] + high[i] * high[i]
            mean = np.float32(total / np.float32(2 * half))
            scale = ONE / np.sqrt(np.float32(mean + np.float32(epsilon)))
            for i in range(half):
                low[i] *= scale * weight[head, 0, i]
            for i in range(half):
                high[i] *= scale * weight[head, 1, i]
            for i in range(half):
                put(keys, (slot, 0, i), low[i] * cosine[at, i] - high[i] * sine[at, i])
            for i in range(half):
                put(keys, (slot, 1, i), high[i] * cosine[at, i] + low[i] * sine[at, i])
            source += heads
            for i in range(half):
                values[slot, 0, i] = projected[row, source, 0, i]
            for i in range(half):
                values[slot, 1, i] = projected[row, source, 1, i]


_share_place_keys = shared(_place_keys)


@njit(cache=True, nogil=True)
def place_keys(
    team: Team,
    projected: Array,
    queries: int,
    weight: Floats,
    epsilon: float,
    cosine: Floats,
    sine: Floats,
    positions: Indices,
    first: Indices,
    stride: Indices,
    keys: Array,
    values: Array,
) -> None:
    """Key heads, normalised and rotated, and value heads, into `keys` and `values` (…, 2, D / 2).

    In `projected`, as above, they follow `queries` query heads. Key head c of a row goes to
    first + c·stride.
    """
    _share_place_keys(
        team,
        0,
        len(projected),
        (projected, queries, weight, epsilon, cosine, sine, positions, first, stride, keys, values),
    )


@njit(nogil=True, error_model="numpy", inline="always")
def _ordered(bits: np.int32) -> np.int32:
    """Bits of floats ↔ integers in the same order: integer maxima are vectorised, float ones are
    not. Its own inverse."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@njit(**LOOP)
def _soften(
    begin: int,
    end: int,
    scores: Array,
    queries: Array,
    offset: int,
    first: Indices,
    stride: Indices,
    visible: Indices,
    keys: Array,
    ancestry: Indices,
    own: Floats,
) -> None:
    heads = own.shape[1]
    group = heads // keys.shape[2]
    steps, size, longest = len(ancestry), queries.shape[1], scores.shape[1]
    exact = np.empty(longest, dtype=np.float32)
    for row in range(begin, end):
        seen = visible[row]
        for head in range(heads):
            slot = first[row] + head * stride[row]
            line, share = scores[slot - offset], own[row, head]
            largest = _SMALLEST
            for t in range(seen):
                value = wide(line[t])
                exact[t] = value
                largest = max(largest, _ordered(np.float32(value).view(np.int32)))
            highest = _ordered(largest).view(np.float32)
            query = queries[slot]
            for step in range(steps):
                key = keys[step, ancestry[step, row], head // group]
                dot = ZERO
                for i in range(size):
                    dot += wide(query[i]) * wide(key[i])
                share[step] = dot
                highest = max(highest, dot)
            total = ZERO
            for t in range(seen):
                value = exponential(exact[t] - highest)
                exact[t] = value
                total += value
            for step in range(steps):
                share[step] = exponential(share[step] - highest)
                total += share[step]
            scale = ONE / total
            for t in range(seen):
                put(line, t, exact[t] * scale)
            for t in range(seen, longest):
                put(line, t, ZERO)
            for step in range(steps):
                share[step] *= scale


_share_soften = shared(_soften)


@njit(cache=True, nogil=True)
def soften(
    team: Team,
    scores: Array,
    queries: Array,
    offset: int,
    begin: int,
    end: int,
    first: Indices,
    stride: Indices,
    visible: Indices,
    keys: Array,
    ancestry: Indices,
    own: Floats,
) -> None:
    """Softmax over the context and the row's own generated positions, for rows begin…end.

    `scores` (block's slots, T) in place: products with the context, of which a row sees the first
    `visible[row]`; the rest becomes 0. The block's slots begin at `offset`. `queries` (slots, D);
    `keys` (steps, rows, C, D); `ancestry` (steps so far, rows): whose key a row continues. `own`
    (rows, H, steps) receives the weights of generated positions.
    """
    _share_soften(
        team,
        begin,
        end,
        (scores, queries, offset, first, stride, visible, keys, ancestry, own),
    )


@njit(**LOOP)
def _blend(
    begin: int,
    end: int,
    mixed: Array,
    offset: int,
    first: Indices,
    stride: Indices,
    values: Array,
    ancestry: Indices,
    own: Floats,
    out: Array,
) -> None:
    heads, size = own.shape[1], mixed.shape[1]
    group = heads // values.shape[2]
    exact = np.empty(size, dtype=np.float32)
    for row in range(begin, end):
        for head in range(heads):
            line = mixed[first[row] + head * stride[row] - offset]
            for i in range(size):
                exact[i] = wide(line[i])
            for step in range(len(ancestry)):
                value = values[step, ancestry[step, row], head // group]
                share = own[row, head, step]
                for i in range(size):
                    exact[i] += share * wide(value[i])
            target = out[row, head * size : (head + 1) * size]
            for i in range(size):
                put(target, i, exact[i])


_share_blend = shared(_blend)


@njit(cache=True, nogil=True)
def blend(
    team: Team,
    mixed: Array,
    offset: int,
    begin: int,
    end: int,
    first: Indices,
    stride: Indices,
    values: Array,
    ancestry: Indices,
    own: Floats,
    out: Array,
) -> None:
    """What rows begin…end take from the context, `mixed` (block's slots, D), plus their own
    generated positions' shares of `values` (steps, rows, C, D), into `out` (rows, H·D)."""
    _share_blend(team, begin, end, (mixed, offset, first, stride, values, ancestry, own, out))


@njit(**LOOP)
def _gate(begin: int, end: int, both: Array, out: Array) -> None:
    width = out.shape[1]
    for row in range(begin, end):
        gates, ups, target = both[row, :width], both[row, width:], out[row]
        for i in range(width):
            x = wide(gates[i])
            small = exponential(-abs(x))
            # The logistic function from e^-|x| alone, so that nothing overflows.
            share = (small if x < ZERO else ONE) / (ONE + small)
            put(target, i, x * share * wide(ups[i]))


_share_gate = shared(_gate)


@njit(cache=True, nogil=True)
def gate(team: Team, both: Array, out: Array) -> None:
    """silu(g)·u of `both` = (g, u), (rows, 2·I), into `out` (rows, I)."""
    _share_gate(team, 0, len(out), (both, out))
