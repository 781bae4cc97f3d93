"""Choosing the best of many scores. Larger is better; equal scores go by the smaller row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_PARTITIONED_SHARE = 0.5


def best_rows(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Rows of the k largest scores, best first, int64 (min(k, n),). Exact, also at the k-th tie."""
    n = len(scores)
    if k <= 0 or n == 0:
        return np.empty(0, dtype=np.int64)
    if k >= n * MAX_PARTITIONED_SHARE:
        return np.argsort(-scores, kind="stable")[:k].astype(np.int64)
    threshold = scores[np.argpartition(scores, n - k)[n - k]]
    above = np.flatnonzero(scores > threshold)
    tied = np.flatnonzero(scores == threshold)[: k - len(above)]
    above = above[np.argsort(-scores[above], kind="stable")]
    return np.concatenate([above, tied]).astype(np.int64)
