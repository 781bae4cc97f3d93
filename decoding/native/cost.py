"""What a wave costs, learned from the waves that ran.

seconds ≈ start + rows · per_row + tokens · per_token, all three ≥ 0, by least squares over recent
waves. Errors count relative to the time that was expected, so that short waves weigh as much as
long ones; older waves count ever less, and one that the machine stalled counts only as a slow one.
While all waves are alike the data cannot tell the three apart; the ridge then puts the cost on the
rows, so that a larger wave is never thought to be free.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MEMORY = 0.98
"""What a wave counts when one more has run: half after 35."""
RIDGE = (3e-3, 1e-5, 1e-4)
"""For start, rows and tokens, relative to the data."""
SURPRISE = 4.0
"""A wave that took longer than so many times what was expected, or shorter, is taken for that."""
SHORTEST_S = 1e-5


class WaveCost:
    """Seconds as a function of beam rows and prompt tokens; 0 until a wave has run."""

    def __init__(self) -> None:
        self._moments = np.zeros((3, 3))
        self._products = np.zeros(3)
        self._coefficients = np.zeros(3)

    def learn(self, rows: int, tokens: int, seconds: float) -> None:
        """One wave of so many beam rows and prompt tokens took so long."""
        seconds = max(seconds, SHORTEST_S)
        expected = max(self.seconds(rows, tokens), SHORTEST_S) if self._products.any() else seconds
        features = np.array([1.0, rows, tokens]) / expected
        share = min(max(seconds / expected, 1 / SURPRISE), SURPRISE)
        self._moments = MEMORY * self._moments + np.outer(features, features)
        self._products = MEMORY * self._products + features * share
        self._coefficients = _fit(self._moments, self._products)

    def seconds(self, rows: int, tokens: int, waves: int = 1) -> float:
        """Of `waves` waves that hold so many rows and tokens together."""
        return float(self._coefficients @ (waves, rows, tokens))


def _fit(moments: NDArray[np.float64], products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ridge regression; coefficients that would be negative are left out, worst first."""
    kept = [0, 1, 2]
    penalised = moments + np.diag(moments.diagonal() * RIDGE)
    fitted = np.zeros(3)
    while kept:
        solution = np.linalg.solve(penalised[np.ix_(kept, kept)], products[kept])
        if solution.min() >= 0:
            fitted[kept] = solution
            break
        kept.pop(int((solution * np.sqrt(moments.diagonal()[kept])).argmin()))
    return fitted
