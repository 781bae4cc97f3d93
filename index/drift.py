"""Codec drift: whether the codebooks still describe what was added to a catalogue since its build.

New items are encoded with the codec of the snapshot that all changes started from. Two things are
compared between the items added since and the snapshot's own:

- quantisation error: mean squared distance of embeddings and their reconstruction;
- code use (CUR): codes of level 1 and SIDs that the added items use, beside what as many of the
  snapshot's own items would use. Drawn from counts k_c of N items, n items are expected to use
  Σ_c 1 − (1 − k_c/N)^n codes.

Own items were what the codebooks were learned from, so items that were not have a larger error even
where nothing drifted: hence thresholds well beside 1. A replaced item counts as added. An item that
was removed again counts until the next merge.

A meter keeps sums and counts, so what was measured is not measured again, and a change costs
nothing when it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from index.live.merge import own_items
from index.live.view import CatalogueView
from index.snapshot import Snapshot

MAX_ERROR_RATIO = 1.5
MIN_USE_RATIO = 0.5
MIN_ITEMS = 200
"""Fewer added items give no verdict."""
SAMPLE_ITEMS = 20_000
"""Of the snapshot's own, spread over it, whose error is measured."""
_BLOCK = 4096

Verdict = Literal["too few", "steady", "drifted"]


@dataclass(frozen=True, slots=True)
class Drift:
    """What was measured. `own_…`: the snapshot's items; `expected_…`: of as many of them."""

    items: int
    error: float
    own_error: float
    codes: int
    expected_codes: float
    sids: int
    expected_sids: float
    new_sids: int
    """SIDs of added items that no item of the snapshot has."""

    @property
    def error_ratio(self) -> float:
        """Above 1: the added items are described worse. 1 without added items."""
        return self.error / self.own_error if self.items and self.own_error else 1.0

    @property
    def code_use_ratio(self) -> float:
        """Below 1: the added items crowd into fewer codes of level 1."""
        return self.codes / self.expected_codes if self.items else 1.0

    @property
    def sid_use_ratio(self) -> float:
        """The same of SIDs."""
        return self.sids / self.expected_sids if self.items else 1.0

    @property
    def verdict(self) -> Verdict:
        """See the thresholds at this module's head."""
        if self.items < MIN_ITEMS:
            return "too few"
        crowded = min(self.code_use_ratio, self.sid_use_ratio) < MIN_USE_RATIO
        return "drifted" if self.error_ratio > MAX_ERROR_RATIO or crowded else "steady"


class DriftMeter:
    """Measures one catalogue's views, the newest last. One thread at a time."""

    def __init__(self) -> None:
        self._base: Snapshot | None = None
        self._own_counts: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._own_keys = np.empty(0, dtype=np.uint64)
        self._own_error = 0.0
        self._begin()

    def measure(self, view: CatalogueView) -> Drift:
        """The drift of a view. Takes time for what came since the last one; after a merge, for
        all that was added since the build."""
        if view.base is not self._base:
            self._rebase(view)
        n_base = len(view.items.base)
        self._add(view, np.arange(n_base + self._measured, n_base + view.items.n_added))
        self._measured = view.items.n_added
        assert self._own_counts is not None
        codes, leaves = (_expected_used(counts, self._items) for counts in self._own_counts)
        known = np.isin(self._keys, self._own_keys, assume_unique=True)
        return Drift(
            self._items,
            self._error / self._items if self._items else 0.0,
            self._own_error,
            int(self._used.sum()),
            codes,
            len(self._keys),
            leaves,
            int((~known).sum()),
        )

    def _begin(self) -> None:
        self._measured = self._items = 0
        self._error = 0.0
        self._used = np.empty(0, dtype=np.bool_)
        self._keys = np.empty(0, dtype=np.uint64)

    def _rebase(self, view: CatalogueView) -> None:
        """Measure a base: the rows of the build, then those that merges brought."""
        base, layout = view.base, view.layout
        n_own = own_items(base)
        own_leaves = base.postings.leaf_of_row[:n_own].astype(np.int64)
        if self._own_counts is None:
            # Later bases have lost some of the build's items, which says nothing of the codec.
            leaves = np.bincount(own_leaves, minlength=base.trie.n_leaves)
            of_leaf = base.trie.codes_of_leaves(np.arange(base.trie.n_leaves))[:, 0]
            codes = np.bincount(of_leaf, leaves, minlength=layout.level_sizes[0])
            self._own_counts = codes.astype(np.int64), leaves[leaves > 0]
            self._own_keys = base.trie.keys[leaves > 0]
            rows = np.arange(0, n_own, max(1, n_own // SAMPLE_ITEMS))
            self._own_error = _errors(view, rows) / max(len(rows), 1)
        self._begin()
        self._used = np.zeros(layout.level_sizes[0], dtype=np.bool_)
        self._base = base
        self._add(view, np.arange(n_own, len(base.items)))

    def _add(self, view: CatalogueView, rows: NDArray[np.int64]) -> None:
        if not len(rows):
            return
        codes = _codes(view, rows)
        self._items += len(rows)
        self._error += _errors(view, rows)
        self._used[codes[:, 0]] = True
        self._keys = np.union1d(self._keys, view.layout.pack(codes))


def _codes(view: CatalogueView, rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """SIDs of rows, deleted ones too, int32 (n, L)."""
    return view.trie.codes_of_leaves(view.postings.leaf_of_row[rows])


def _errors(view: CatalogueView, rows: NDArray[np.int64]) -> float:
    """Sum of the squared distances between rows' embeddings and their reconstructions."""
    total = 0.0
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        vectors = view.dense.vectors(part).astype(np.float32)
        total += view.codec.quantisation_error(vectors, _codes(view, part)) * len(part)
    return total


def _expected_used(counts: NDArray[np.int64], n: int) -> float:
    """Codes that n items are expected to use, where each is drawn like the counted ones."""
    share = counts / max(int(counts.sum()), 1)
    return float(-np.expm1(n * np.log1p(-np.minimum(share, 1 - 1e-12))).sum())
