"""Bootstrap intervals of means over visits, resampled by user.

Visits of one user share tastes and are no independent observations, so whole users are drawn: with
per-user sums S_u and counts n_u, a resample of users gives Σ S_u / Σ n_u. One set of resamples
serves every method, so differences are paired. Intervals are 95 % percentiles.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

SAMPLES = 1000
EDGES = (2.5, 97.5)
_BLOCK = 100


class ClusterBootstrap:
    """Resamples of the clusters that `owners` (one for each observation) name."""

    def __init__(
        self, owners: Sequence[Hashable], random: np.random.Generator, samples: int = SAMPLES
    ) -> None:
        number: dict[Hashable, int] = {}
        self._cluster = np.array(
            [number.setdefault(owner, len(number)) for owner in owners], np.int64
        )
        self.clusters = len(number)
        self._drawn = random.integers(max(self.clusters, 1), size=(samples, self.clusters))

    def interval(
        self, values: NDArray[np.float64], chosen: NDArray[np.bool_] | None = None
    ) -> tuple[float, list[float]]:
        """Mean and [low, high] of `values` (N,), of the observations `chosen` (N,) or of all."""
        kept = np.ones(len(values), np.bool_) if chosen is None else chosen
        if not kept.any():
            return 0.0, [0.0, 0.0]
        cluster = self._cluster[kept]
        sums = np.bincount(cluster, values[kept], minlength=self.clusters)
        counts = np.bincount(cluster, minlength=self.clusters)
        means: list[NDArray[np.float64]] = []
        for start in range(0, len(self._drawn), _BLOCK):
            drawn = self._drawn[start : start + _BLOCK]
            means.append(sums[drawn].sum(axis=1) / np.maximum(counts[drawn].sum(axis=1), 1))
        low, high = np.percentile(np.concatenate(means), EDGES)
        return float(values[kept].mean()), [float(low), float(high)]
