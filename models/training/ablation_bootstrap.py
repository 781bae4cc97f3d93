"""Bootstrap intervals of means over searches and seeds, resampled by query and by seed.

Searches of one query answer alike and weights of one seed rank alike, so both are drawn whole and
independently of each other: with per-query sums D[s, q] of seed s and sizes n[q], a resample takes
seeds with multiplicities k and queries with multiplicities c, and its mean is

    Σ_s Σ_q k[s] · c[q] · D[s, q]  /  (Σ_s k[s] · Σ_q c[q] · n[q])

Differences of two rows are taken search by search and seed by seed before, so they are paired.
Intervals are 95 % percentiles. Of few seeds the spread is understated (by √(2/3) of three), and of
a single seed it is not seen at all.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

SAMPLES = 2000
EDGES = (2.5, 97.5)


class SeedBootstrap:
    """Resamples of `seeds` seeds and of the queries that `owners` (one for each search) name."""

    def __init__(
        self,
        owners: Sequence[Hashable],
        seeds: int,
        random: np.random.Generator,
        samples: int = SAMPLES,
    ) -> None:
        number: dict[Hashable, int] = {}
        self._query = np.array([number.setdefault(owner, len(number)) for owner in owners])
        self._queries = len(number)
        count = max(self._queries, 1)
        self._query_weight = random.multinomial(count, np.full(count, 1 / count), samples)
        self._seed_weight = random.multinomial(seeds, np.full(seeds, 1 / seeds), samples)

    def interval(
        self, values: NDArray[np.float64], chosen: NDArray[np.bool_] | None = None
    ) -> tuple[float, list[float]]:
        """Mean and [low, high] of `values` (S, N), of the searches `chosen` (N,) or of all.

        A resample without any chosen search says nothing and is left out.
        """
        kept = np.ones(values.shape[1], np.bool_) if chosen is None else chosen
        if not kept.any():
            return 0.0, [0.0, 0.0]
        means = self.means(values, kept)
        low, high = np.percentile(means, EDGES)
        return float(values[:, kept].mean()), [float(low), float(high)]

    def means(self, values: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The resampled means, float64 (samples,) or fewer."""
        query = self._query[kept]
        sums = np.stack([np.bincount(query, row[kept], self._queries) for row in values])
        sizes = np.bincount(query, minlength=self._queries)
        found = self._query_weight @ sizes
        told = found > 0
        total = ((self._seed_weight @ sums) * self._query_weight).sum(axis=1)
        return total[told] / (len(values) * found[told])
