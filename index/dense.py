"""Exact dense retrieval over the items' embeddings.

The file holds unit vectors in half precision, memory-mapped; the search structure keeps the same
values in memory (2·d bytes per item). A few queries scan it directly; many queries, or a mask that
keeps few rows, go through matrix products over single-precision blocks. Both are exact, under a
mask too.

faiss shares even the smallest call among all processors, and its threads then spin for
milliseconds, waiting for the next. Few queries and few rows are therefore done by the calling
thread alone: a search would pay for it many times over, and those beside it, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from index.arrays import open_array, save_arrays
from index.errors import ConfigError

MAX_SCANNED_QUERIES = 16
"""From here on decoding blocks for matrix products costs less than scanning once per query."""
MAX_GATHERED_ROWS = 4_096
"""Masks that keep at most this many rows never scan the others."""
_BLOCK_ROWS = 65_536
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class DenseIndex:
    """`embeddings`: float16 (n, d). Immutable; safe to search from several threads."""

    embeddings: NDArray[np.float16]
    _scan: Any

    @classmethod
    def build(cls, embeddings: NDArray[np.floating[Any]]) -> DenseIndex:
        """From unit vectors (n, d) of any float type; they are rounded to half precision."""
        if embeddings.ndim != 2:
            raise ConfigError(f"expected embeddings of shape (n, d), got {embeddings.shape}")
        return cls._over(np.ascontiguousarray(embeddings, dtype=np.float16))

    @classmethod
    def _over(cls, embeddings: NDArray[np.float16]) -> DenseIndex:
        half = faiss.ScalarQuantizer.QT_fp16
        scan = faiss.IndexScalarQuantizer(embeddings.shape[1], half, faiss.METRIC_INNER_PRODUCT)
        scan.is_trained = True  # half precision has nothing to learn
        for first in range(0, len(embeddings), _BLOCK_ROWS):
            scan.add_sa_codes(embeddings[first : first + _BLOCK_ROWS].view(np.uint8))
        return cls(embeddings, scan)

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
        k = min(k, allowed)
        if k <= 0 or not len(queries):
            shape = (len(queries), max(k, 0))
            return np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.float32)
        if len(queries) > MAX_SCANNED_QUERIES:
            scores, rows = self._multiply(queries, k, mask)
        elif allowed <= MAX_GATHERED_ROWS:
            scores, rows = _alone(lambda: self._multiply(queries, k, mask))
        else:
            scores, rows = _alone(lambda: self._scanned(queries, k, mask))
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def similarity(
        self, query: NDArray[np.float32], rows: NDArray[np.integer[Any]]
    ) -> NDArray[np.float32]:
        """Inner products of one query (d,) with the given items, float32 (len(rows),)."""
        return self.vectors(rows) @ query.astype(np.float32)

    def vectors(self, rows: NDArray[np.integer[Any]] | slice) -> NDArray[np.float32]:
        """Embeddings of the given items, float32 (n, d)."""
        codes = self.embeddings[rows].view(np.uint8)
        if len(codes) > MAX_GATHERED_ROWS:
            return self._scan.sa_decode(codes)
        return _alone(lambda: self._scan.sa_decode(codes))

    def _scanned(
        self, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows (q, k) by a look at every item; the mask must keep at least k rows."""
        if mask is None:
            return self._scan.search(queries, k)
        bits = np.packbits(mask, bitorder="little")
        parameters = faiss.SearchParameters()
        # The selector borrows `bits` and the parameters borrow the selector: both stay named.
        selector = faiss.IDSelectorBitmap(self.n_items, faiss.swig_ptr(bits))
        parameters.sel = selector
        return self._scan.search(queries, k, params=parameters)

    def _multiply(
        self, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows (q, k), block by block; the mask must keep at least k rows."""
        allowed = None if mask is None else np.flatnonzero(mask)
        n = self.n_items if allowed is None else len(allowed)
        scores = np.empty((len(queries), 0), dtype=np.float32)
        rows = np.empty((len(queries), 0), dtype=np.int64)
        for first in range(0, n, _BLOCK_ROWS):
            block = slice(first, min(first + _BLOCK_ROWS, n))
            vectors = self.vectors(block if allowed is None else allowed[block])
            found_scores, found = faiss.knn(
                queries, vectors, min(k, len(vectors)), faiss.METRIC_INNER_PRODUCT
            )
            found = found + first if allowed is None else allowed[found + first]
            scores = np.concatenate([scores, found_scores], axis=1)
            rows = np.concatenate([rows, found], axis=1)
            best = np.lexsort((rows, -scores), axis=1)[:, :k]
            scores = np.take_along_axis(scores, best, axis=1)
            rows = np.take_along_axis(rows, best, axis=1)
        return scores, rows


def _alone(call: Callable[[], Result]) -> Result:
    """What a call gives, done by this thread only. The number of threads is this thread's own."""
    threads = faiss.omp_get_max_threads()
    if threads == 1:
        return call()
    faiss.omp_set_num_threads(1)
    try:
        return call()
    finally:
        faiss.omp_set_num_threads(threads)
