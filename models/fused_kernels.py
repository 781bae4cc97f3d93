"""What training computes between its matrix products on a CPU, forward and backward, each in one
pass over memory.

Arrays are bfloat16 seen as uint16 (`decoding.native.numbers`); sums and functions are float32, and
so are weights and their gradients. Heads are seen as two halves, (…, 2, D / 2), which is how
rotation pairs them. Gradients of weights are summed by blocks of BLOCK rows, then over blocks: the
same sums whatever the number of threads. Loops are small and over few arrays, so that the compiler
vectorises them.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from decoding.native.numbers import LOOP, ONE, ZERO, Array, Floats, exponential, put, wide
from decoding.team import Team, shared

BLOCK = 128


@njit(**LOOP)
def _normalise(
    begin: int, end: int, state: Array, weight: Floats, epsilon: float, out: Array, scales: Floats
) -> None:
    width = state.shape[1]
    for row in range(begin, end):
        line, target = state[row], out[row]
        total = ZERO
        for i in range(width):
            value = wide(line[i])
            total += value * value
        scale = ONE / np.sqrt(np.float32(total / np.float32(width) + np.float32(epsilon)))
        scales[row] = scale
        for i in range(width):
            put(target, i, wide(line[i]) * scale * weight[i])


_share_normalise = shared(_normalise)


@njit(cache=True, nogil=True)
def normalise(
    team: Team, state: Array, weight: Floats, epsilon: float, out: Array, scales: Floats
) -> None:
    """RMSNorm of `state` (rows, d) into `out` (rows, d); `scales` (rows,) receives 1 / √(mean x² +
    ε)."""
    _share_normalise(team, 0, len(state), (state, weight, epsilon, out, scales))


@njit(**LOOP)
def _normalise_backward(
    begin: int,
    end: int,
    slope: Array,
    state: Array,
    weight: Floats,
    scales: Floats,
    out: Array,
    sums: Floats,
) -> None:
    rows, width = state.shape
    for block in range(begin, end):
        own = sums[block]
        for row in range(block * BLOCK, min((block + 1) * BLOCK, rows)):
            line, back, target, scale = state[row], slope[row], out[row], scales[row]
            dot = ZERO
            for i in range(width):
                dot += wide(back[i]) * weight[i] * wide(line[i])
            common = np.float32(dot * scale * scale * scale / np.float32(width))
            for i in range(width):
                put(target, i, wide(back[i]) * weight[i] * scale - wide(line[i]) * common)
            for i in range(width):
                own[i] += wide(back[i]) * wide(line[i]) * scale


_share_normalise_backward = shared(_normalise_backward)


@njit(cache=True, nogil=True)
def normalise_backward(
    team: Team,
    slope: Array,
    state: Array,
    weight: Floats,
    scales: Floats,
    out: Array,
    sums: Floats,
) -> None:
    """From the gradient `slope` (rows, d) of RMSNorm's result: that of its input into `out`, and
    that of the weight, by blocks, added to `sums` (blocks, d).

    With x̂ = x·r, g = w·∂y:  ∂x = r·(g − x̂·mean(g·x̂)),  ∂w = Σ ∂y·x̂.
    """
    _share_normalise_backward(team, 0, len(sums), (slope, state, weight, scales, out, sums))


@njit(**LOOP)
def _gate_backward(begin: int, end: int, slope: Array, both: Array, out: Array) -> None:
    width = slope.shape[1]
    shares = np.empty(width, dtype=np.float32)
    for row in range(begin, end):
        gates, ups, back = both[row, :width], both[row, width:], slope[row]
        to_gates, to_ups = out[row, :width], out[row, width:]
        for i in range(width):
            x = wide(gates[i])
            small = exponential(-abs(x))
            shares[i] = (small if x < ZERO else ONE) / (ONE + small)
        for i in range(width):
            put(to_ups, i, wide(back[i]) * wide(gates[i]) * shares[i])
        for i in range(width):
            bend = shares[i] * (ONE + wide(gates[i]) * (ONE - shares[i]))
            put(to_gates, i, wide(back[i]) * wide(ups[i]) * bend)


_share_gate_backward = shared(_gate_backward)


@njit(cache=True, nogil=True)
def gate_backward(team: Team, slope: Array, both: Array, out: Array) -> None:
    """From the gradient `slope` (rows, I) of what `decoding.native.kernels.gate` gives: that of
    `both` into `out`."""
    _share_gate_backward(team, 0, len(both), (slope, both, out))


@njit(**LOOP)
def _turn_heads(
    begin: int,
    end: int,
    projected: Array,
    first: int,
    weight: Floats,
    epsilon: float,
    cosine: Floats,
    sine: Floats,
    out: Array,
    scales: Floats,
) -> None:
    _, heads, length, _, half = out.shape
    low, high = np.empty(half, dtype=np.float32), np.empty(half, dtype=np.float32)
    for row in range(begin, end):
        batch, place = row // length, row % length
        for n in range(heads):
            head = first + n
            total = ZERO
            for i in range(half):
                low[i] = wide(projected[row, head, 0, i])
                high[i] = wide(projected[row, head, 1, i])
                total += low[i] * low[i] + high[i] * high[i]
            mean = np.float32(total / np.float32(2 * half))
            scale = ONE / np.sqrt(np.float32(mean + np.float32(epsilon)))
            scales[row, n] = scale
            for i in range(half):
                low[i] *= scale * weight[n, 0, i]
            for i in range(half):
                high[i] *= scale * weight[n, 1, i]
            for i in range(half):
                value = low[i] * cosine[row, i] - high[i] * sine[row, i]
                put(out, (batch, n, place, 0, i), value)
            for i in range(half):
                value = high[i] * cosine[row, i] + low[i] * sine[row, i]
                put(out, (batch, n, place, 1, i), value)


_share_turn_heads = shared(_turn_heads)


@njit(cache=True, nogil=True)
def turn_heads(
    team: Team,
    projected: Array,
    first: int,
    weight: Floats,
    epsilon: float,
    cosine: Floats,
    sine: Floats,
    out: Array,
    scales: Floats,
) -> None:
    """Heads `first`, … of every row normalised and rotated, to their places in `out`.

    `projected` (B·T, all heads, 2, D / 2); `weight` (H, 2, D / 2); `cosine`, `sine` (B·T, D / 2);
    `out` (B, H, T, 2, D / 2); `scales` (B·T, H) receives 1 / √(mean x² + ε).
    """
    _share_turn_heads(
        team,
        0,
        len(projected),
        (projected, first, weight, epsilon, cosine, sine, out, scales),
    )


@njit(**LOOP)
def _turn_heads_backward(
    begin: int,
    end: int,
    slope: Array,
    projected: Array,
    first: int,
    weight: Floats,
    cosine: Floats,
    sine: Floats,
    scales: Floats,
    out: Array,
    sums: Floats,
) -> None:
    _, heads, length, _, half = slope.shape
    rows = len(projected)
    low, high = np.empty(half, dtype=np.float32), np.empty(half, dtype=np.float32)
    left, right = np.empty(half, dtype=np.float32), np.empty(half, dtype=np.float32)
    for block in range(begin, end):
        for row in range(block * BLOCK, min((block + 1) * BLOCK, rows)):
            batch, place = row // length, row % length
            for n in range(heads):
                head, scale = first + n, scales[row, n]
                for i in range(half):
                    left[i] = wide(slope[batch, n, place, 0, i])
                    right[i] = wide(slope[batch, n, place, 1, i])
                for i in range(half):
                    low[i] = left[i] * cosine[row, i] + right[i] * sine[row, i]
                for i in range(half):
                    high[i] = right[i] * cosine[row, i] - left[i] * sine[row, i]
                for i in range(half):
                    left[i] = wide(projected[row, head, 0, i]) * scale
                    right[i] = wide(projected[row, head, 1, i]) * scale
                for i in range(half):
                    sums[block, n, 0, i] += low[i] * left[i]
                for i in range(half):
                    sums[block, n, 1, i] += high[i] * right[i]
                for i in range(half):
                    low[i] *= weight[n, 0, i]
                for i in range(half):
                    high[i] *= weight[n, 1, i]
                dot = ZERO
                for i in range(half):
                    dot += low[i] * left[i] + high[i] * right[i]
                common = np.float32(dot / np.float32(2 * half))
                for i in range(half):
                    put(out, (row, head, 0, i), scale * (low[i] - left[i] * common))
                for i in range(half):
                    put(out, (row, head, 1, i), scale * (high[i] - right[i] * common))


_share_turn_heads_backward = shared(_turn_heads_backward)


@njit(cache=True, nogil=True)
def turn_heads_backward(
    team: Team,
    slope: Array,
    projected: Array,
    first: int,
    weight: Floats,
    cosine: Floats,
    sine: Floats,
    scales: Floats,
    out: Array,
    sums: Floats,
) -> None:
    """From the gradient `slope` (B, H, T, 2, D / 2) of `turn_heads`' result: that of `projected`
    into the same heads of `out`, and that of `weight`, by blocks, added to `sums` (blocks, H, 2,
    D / 2)."""
    _share_turn_heads_backward(
        team,
        0,
        len(sums),
        (slope, projected, first, weight, cosine, sine, scales, out, sums),
    )
