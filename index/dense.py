"""Exact dense retrieval over the items' embeddings.

The file holds unit vectors in half precision, memory-mapped; searching uses a single-precision copy
of the same values in memory (4·d bytes per item). A search under a mask is exact too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.arrays import open_array, save_arrays
from index.errors import ConfigError
from index.ranking import best_rows

_BLOCK_ROWS = 65_536
MAX_GATHERED_ROWS = 4_096
"""Masks that keep at most this many rows are scored by one matrix product over those rows."""


@dataclass(frozen=True, slots=True, eq=False)
class DenseIndex:
    """`embeddings`: float16 (n, d). Immutable; safe to search from several threads."""

    embeddings: NDArray[np.float16]
    _flat: Any

    @classmethod
    def build(cls, embeddings: NDArray[np.floating[Any]]) -> DenseIndex:
        """From unit vectors (n, d) of any float type; they are rounded to half precision."""
        if embeddings.ndim != 2:
            raise ConfigError(f"expected embeddings of shape (n, d), got {embeddings.shape}")
        return cls._over(embeddings.astype(np.float16))

    @classmethod
    def _over(cls, embeddings: NDArray[np.float16]) -> DenseIndex:
        flat = faiss.IndexFlatIP(embeddings.shape[1])
        for first in range(0, len(embeddings), _BLOCK_ROWS):
            flat.add(embeddings[first : first + _BLOCK_ROWS].astype(np.float32))
        return cls(embeddings, flat)

    def save(self, directory: Path) -> None:
        save_arrays(directory, {"embeddings": self.embeddings})

    @classmethod
    def open(cls, directory: Path) -> DenseIndex:
        """Memory-map saved embeddings. Raises ArtifactError when they are missing or damaged."""
        return cls._over(open_array(Path(directory) / "embeddings.npy"))

    @property
    def n_items(self) -> int:
        return len(self.embeddings)

    @property
    def dimension(self) -> int:
        return self.embeddings.shape[1]

    def search(
        self, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k most similar items of each query, best first.

        `queries`: float32 (q, d); `mask`: bool (n,), rows that may be found. Returns rows int64 and
        inner products float32, both (q, min(k, allowed rows)).
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ConfigError(f"expected queries (q, {self.dimension}), got {queries.shape}")
        allowed = self.n_items
        if mask is not None:
            if mask.shape != (self.n_items,):
                raise ConfigError(f"expected a mask of {self.n_items} items, got {mask.shape}")
            allowed = int(np.count_nonzero(mask))
            if allowed <= MAX_GATHERED_ROWS:
                return self._search_rows(queries, k, np.flatnonzero(mask))
        k = min(k, allowed)
        if k <= 0 or not len(queries):
            shape = (len(queries), max(k, 0))
            return np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.float32)
        if mask is None:
            scores, rows = self._flat.search(queries, k)
        else:
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(self.n_items, faiss.swig_ptr(bits))
            parameters = faiss.SearchParameters()
            parameters.sel = selector
            scores, rows = self._flat.search(queries, k, params=parameters)
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def similarity(
        self, query: NDArray[np.float32], rows: NDArray[np.integer[Any]]
    ) -> NDArray[np.float32]:
        """Inner products of one query (d,) with the given items, float32 (len(rows),)."""
        return self.embeddings[rows].astype(np.float32) @ query.astype(np.float32)

    def _search_rows(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        scores = queries @ self.embeddings[rows].astype(np.float32).T
        k = min(k, len(rows))
        found = np.empty((len(queries), k), dtype=np.int64)
        for position, of_query in enumerate(scores):
            found[position] = best_rows(of_query, k)
        return rows[found], np.take_along_axis(scores, found, axis=1)
