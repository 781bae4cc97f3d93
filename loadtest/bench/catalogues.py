"""Catalogues of random SIDs, by law and size; sorted, distinct, reproducible."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from index.sid import SidLayout

PUBLISHED_LAYOUT = SidLayout((4096, 1024, 512, 256, 256))
Law = Literal["uniform", "zipf"]
_SURPLUS = 1.02
_MOST_DRAWS = 64
_LEAST_FRESH = 0.1


def random_keys(
    layout: SidLayout, count: int, law: Law = "uniform", seed: int = 7
) -> NDArray[np.uint64]:
    """`count` distinct packed SIDs, sorted, uint64 (count,).

    "uniform": every code of a level alike. "zipf": code c of a level has weight 1 / (c + 1), so a
    few prefixes hold most SIDs. The layout must have many more SIDs than asked for.
    """
    random = np.random.default_rng(seed)
    keys = np.zeros(0, dtype=np.uint64)
    fresh_share = 1.0
    for _ in range(_MOST_DRAWS):
        missing = count - len(keys)
        if missing <= 0:
            break
        drawn = _draw(layout, int(missing / fresh_share * _SURPLUS) + 16, law, random)
        before, keys = len(keys), np.unique(np.concatenate((keys, drawn)))
        # The next draw repeats at least as much; never ask for much more than is missing.
        fresh_share = max((len(keys) - before) / len(drawn), _LEAST_FRESH)
    assert len(keys) >= count, f"{layout.level_sizes} is too small for {count} SIDs"
    surplus = random.choice(len(keys), len(keys) - count, replace=False)
    return np.delete(keys, surplus)


def _draw(
    layout: SidLayout, count: int, law: Law, random: np.random.Generator
) -> NDArray[np.uint64]:
    keys = np.zeros(count, dtype=np.uint64)
    for size, shift in zip(layout.level_sizes, layout.shifts, strict=True):
        if law == "uniform":
            codes = random.integers(0, size, count, dtype=np.uint64)
        else:
            weights = np.cumsum(1.0 / np.arange(1, size + 1))
            codes = np.searchsorted(weights, random.random(count) * weights[-1]).astype(np.uint64)
        keys |= codes << np.uint64(shift)
    return keys
