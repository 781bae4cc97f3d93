"""The items of each leaf of a trie with changes.

An added item's SID is kept as a number that never changes: its leaf, if the base trie has it, else
`base.n_leaves + id` (`LiveTrie.ids`). Added items are kept sorted by it, so those of some leaves
are found by binary search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import ConfigError
from index.live.arrays import Column
from index.live.delta import Delta
from index.live.kernels import inserted, mark_leaves
from index.live.trie import LiveTrie
from index.postings import Postings


@dataclass(frozen=True, slots=True, eq=False)
class LeafOfRow:
    """The leaf of each row, base and added; reads like an array."""

    base: NDArray[np.uint32]
    sids: NDArray[np.int64]
    trie: LiveTrie

    def __len__(self) -> int:
        return len(self.base) + len(self.sids)

    def __getitem__(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else np.asarray(rows, dtype=np.int64)
        leaves = np.empty(len(rows), dtype=np.int64)
        inside = rows < len(self.base)
        leaves[inside] = self.base[rows[inside]]
        leaves[~inside] = leaves_of_sids(self.trie, self.sids[rows[~inside] - len(self.base)])
        return leaves


@dataclass(frozen=True, slots=True, eq=False)
class LivePostings:
    """The postings of a view. Immutable; safe to share between threads.

    `sids`: int64 (added,), the SID number of each added item. `sorted_sids` the same in order,
    `sorted_rows` their rows. `alive`: None when nothing was deleted.
    """

    base: Postings
    trie: LiveTrie
    sids: NDArray[np.int64]
    sorted_sids: NDArray[np.int64]
    sorted_rows: NDArray[np.int64]
    alive: Column[np.bool_] | None
    popularity: Column[np.float32]
    """Popularity score of each row: it orders the items of a leaf."""
    popularity_changed: bool = False

    @classmethod
    def of(cls, base: Postings, trie: LiveTrie, popularity: Column[np.float32]) -> LivePostings:
        """A base without changes."""
        nothing = np.empty(0, dtype=np.int64)
        return cls(base, trie, nothing, nothing, nothing, None, popularity)

    @property
    def n_leaves(self) -> int:
        return self.trie.n_leaves

    @property
    def n_items(self) -> int:
        """Number of rows, deleted ones too."""
        return self.base.n_items + len(self.sids)

    @property
    def leaf_of_row(self) -> LeafOfRow:
        return LeafOfRow(self.base.leaf_of_row, self.sids, self.trie)

    def rows_of(
        self, leaves: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Items of leaves (m,) as `Postings.rows_of` gives them, without deleted ones."""
        leaves = np.asarray(leaves, dtype=np.int64)
        n_base = self.base.n_leaves
        known = np.flatnonzero(leaves < n_base)
        rows, place = self.base.rows_of(leaves[known])
        place = known[place]
        mixed = self.popularity_changed
        if len(self.sids):
            added_rows, added_place = self._added_rows_of(leaves)
            if len(added_rows):
                rows = np.concatenate([rows, added_rows])
                place = np.concatenate([place, added_place])
                mixed = True
        if self.alive is not None:
            kept = self.alive[rows]
            rows, place = rows[kept], place[kept]
        if mixed:
            order = np.lexsort((rows, -self.popularity[rows], place))
            rows, place = rows[order], place[order]
        return rows, place

    def sid_of_row(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The SID number of each row."""
        sids = np.empty(len(rows), dtype=np.int64)
        inside = rows < self.base.n_items
        sids[inside] = self.base.leaf_of_row[rows[inside]]
        sids[~inside] = self.sids[rows[~inside] - self.base.n_items]
        return sids

    def leaves_of(self, sids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The leaf of each SID number."""
        return leaves_of_sids(self.trie, sids)

    def leaf_mask(self, item_mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Leaves with at least one allowed item: bool (rows,) → bool (N,)."""
        if item_mask.shape != (self.n_items,):
            raise ConfigError(f"expected a mask of {self.n_items} items, got {item_mask.shape}")
        mask = np.zeros(self.n_leaves, dtype=np.bool_)
        mark_leaves(item_mask[: self.base.n_items], self.base.leaf_of_row, mask)
        added = self.sids[item_mask[self.base.n_items :]]
        mask[leaves_of_sids(self.trie, added)] = True
        return mask

    def with_delta(
        self,
        delta: Delta,
        trie: LiveTrie,
        sids: NDArray[np.int64],
        alive: Column[np.bool_] | None,
        popularity: Column[np.float32],
    ) -> LivePostings:
        """The postings after a delta made for this state, whose SIDs `trie` and `sids` have."""
        sorted_sids, sorted_rows = self.sorted_sids, self.sorted_rows
        if delta.n_added:
            order, places = delta.sid_order, delta.sid_places
            sorted_sids = inserted(sorted_sids, places, delta.sids[order])
            sorted_rows = inserted(sorted_rows, places, self.n_items + order)
        return LivePostings(
            self.base,
            trie,
            sids,
            sorted_sids,
            sorted_rows,
            alive,
            popularity,
            self.popularity_changed or len(delta.popularity_rows) > 0,
        )

    def _added_rows_of(
        self, leaves: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Added rows of the given leaves, and the place in `leaves` of each."""
        sids = sids_of_leaves(self.trie, leaves)
        first = np.searchsorted(self.sorted_sids, sids)
        counts = np.searchsorted(self.sorted_sids, sids, side="right") - first
        place = np.repeat(np.arange(len(leaves)), counts)
        offset = first - (np.cumsum(counts) - counts)
        return self.sorted_rows[np.arange(len(place)) + offset[place]], place


def sids_of_leaves(trie: LiveTrie, leaves: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of each leaf's SID."""
    n_base = trie.base.n_leaves
    sids = leaves.copy()
    added = leaves >= n_base
    sids[added] = n_base + trie.ids[leaves[added] - n_base]
    return sids


def leaves_of_sids(trie: LiveTrie, sids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The leaf of each SID number."""
    n_base = trie.base.n_leaves
    leaves = sids.copy()
    added = sids >= n_base
    leaves[added] = trie.leaf_of_id[sids[added] - n_base]
    return leaves
