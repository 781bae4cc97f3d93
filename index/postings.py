"""Postings: the items of each legal SID, best first.

`rows[start[j]:start[j + 1]]` are the item rows of leaf j, by falling popularity, then by row.
Every item has exactly one leaf.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.arrays import open_array, save_arrays
from index.errors import ArtifactError, ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """`start`: uint32 (N + 1,), `rows`: uint32 (n_items,), `leaf_of_row`: uint32 (n_items,)."""

    start: NDArray[np.uint32]
    rows: NDArray[np.uint32]
    leaf_of_row: NDArray[np.uint32]

    @classmethod
    def build(
        cls,
        leaf_of_row: NDArray[np.integer[Any]],
        n_leaves: int,
        popularity: NDArray[np.floating[Any]],
    ) -> Postings:
        """`leaf_of_row`: leaf of each item row, (n_items,); `popularity`: (n_items,), larger is
        better. Raises ConfigError for a leaf outside [0, n_leaves) or lengths that differ.
        """
        if leaf_of_row.shape != popularity.shape:
            raise ConfigError(
                f"{leaf_of_row.shape} leaves do not fit {popularity.shape} popularities"
            )
        if len(leaf_of_row) and not 0 <= leaf_of_row.min() <= leaf_of_row.max() < n_leaves:
            raise ConfigError(f"leaf_of_row must lie in [0, {n_leaves})")
        rows = np.lexsort((-popularity, leaf_of_row)).astype(np.uint32)
        start = np.zeros(n_leaves + 1, dtype=np.uint32)
        np.cumsum(np.bincount(leaf_of_row, minlength=n_leaves), out=start[1:], dtype=np.uint32)
        return cls(start, rows, leaf_of_row.astype(np.uint32))

    def save(self, directory: Path) -> None:
        save_arrays(
            directory,
            {"start": self.start, "rows": self.rows, "leaf_of_row": self.leaf_of_row},
        )

    @classmethod
    def open(cls, directory: Path) -> Postings:
        """Memory-map saved postings. Raises ArtifactError when files are missing or disagree."""
        directory = Path(directory)
        start, rows, leaf_of_row = (
            open_array(directory / f"{name}.npy") for name in ("start", "rows", "leaf_of_row")
        )
        if not len(rows) == len(leaf_of_row) == start[-1]:
            raise ArtifactError(f"the arrays of {directory} disagree; build the index again")
        return cls(start, rows, leaf_of_row)

    @property
    def n_leaves(self) -> int:
        return len(self.start) - 1

    @property
    def n_items(self) -> int:
        return len(self.rows)

    def counts(self) -> NDArray[np.int64]:
        """Items of each leaf, int64 (N,)."""
        return np.diff(self.start).astype(np.int64)

    def rows_of(
        self, leaves: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Items of the given leaves (m,), leaf after leaf, best first within each.

        Returns `(rows, index_of_leaf)`, int64 each: item `rows[i]` has leaf
        `leaves[index_of_leaf[i]]`.
        """
        leaves = np.asarray(leaves, dtype=np.int64)
        first = self.start[leaves].astype(np.int64)
        counts = self.start[leaves + 1] - first
        index_of_leaf = np.repeat(np.arange(len(leaves)), counts)
        offset = first - (np.cumsum(counts) - counts)
        positions = np.arange(len(index_of_leaf)) + offset[index_of_leaf]
        return self.rows[positions].astype(np.int64), index_of_leaf

    def leaf_mask(self, item_mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Leaves with at least one allowed item: bool (n_items,) → bool (N,)."""
        if item_mask.shape != (self.n_items,):
            raise ConfigError(f"expected a mask of {self.n_items} items, got {item_mask.shape}")
        mask = np.zeros(self.n_leaves, dtype=np.bool_)
        mask[self.leaf_of_row[item_mask]] = True
        return mask
