"""Exact dense retrieval over a base and the items added to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.dense import DenseIndex
from index.errors import ConfigError
from index.live.arrays import Column


@dataclass(frozen=True, slots=True, eq=False)
class LiveDense:
    """The dense index of a view. Immutable; safe to search from several threads.

    `added`: float32 (added, d), rounded to half precision like the base's. `alive`: None when
    nothing was deleted.
    """

    base: DenseIndex
    added: NDArray[np.float32]
    alive: Column[np.bool_] | None

    @property
    def n_items(self) -> int:
        """Number of rows, deleted ones too."""
        return self.base.n_items + len(self.added)

    @property
    def dimension(self) -> int:
        return self.base.dimension

    def search(
        self, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k most similar items of each query, as `DenseIndex.search` finds them.

        `mask`: bool (rows,), rows that may be found; deleted ones never are.
        """
        if mask is not None and mask.shape != (self.n_items,):
            raise ConfigError(f"expected a mask of {self.n_items} items, got {mask.shape}")
        if self.alive is not None:
            alive = self.alive.whole()
            mask = alive if mask is None else mask & alive
        n_base = self.base.n_items
        rows, scores = self.base.search(queries, k, None if mask is None else mask[:n_base])
        allowed = slice(None) if mask is None else np.flatnonzero(mask[n_base:])
        added = np.arange(len(self.added))[allowed]
        if not len(added) or not len(queries) or k <= 0:
            return rows, scores
        vectors = self.added if mask is None else self.added[added]
        added_scores = np.asarray(queries, dtype=np.float32) @ vectors.T
        added_rows = np.broadcast_to(added + n_base, added_scores.shape)
        rows = np.concatenate([rows, added_rows], axis=1)
        scores = np.concatenate([scores, added_scores], axis=1)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def similarity(
        self, query: NDArray[np.float32], rows: NDArray[np.integer[Any]]
    ) -> NDArray[np.float32]:
        """Inner products of one query (d,) with the given items, float32 (len(rows),)."""
        return self.vectors(rows) @ query.astype(np.float32)

    def vectors(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Embeddings of the given items, float32 (n, d)."""
        rows = np.asarray(rows, dtype=np.int64)
        inside = rows < self.base.n_items
        if inside.all():
            return self.base.vectors(rows)
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)
        vectors[inside] = self.base.vectors(rows[inside])
        vectors[~inside] = self.added[rows[~inside] - self.base.n_items]
        return vectors
