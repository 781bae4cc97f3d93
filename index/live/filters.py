"""What a filter lets through in a view: rows, SIDs, and how many of each; kept and patched.

A filter is evaluated once on the whole catalogue. For later views of the same base its masks are
copied and mended where rows changed: a row is judged anew, then its leaf, then the leaf's
ancestors as far as something changes. Where too much changed it is evaluated anew.

The conditions on fields that never change (brand, category, color, material) are kept apart from
those on price and stock: of a changed row only the latter are judged anew.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from index.items import ItemFilter
from index.live.kernels import any_child
from index.live.postings import leaves_of_sids
from index.trie import Trie, TrieFilter

if TYPE_CHECKING:
    from index.live.view import CatalogueView

MAX_CACHE_BYTES = 256 << 20
MAX_PATCHED_SHARE = 0.125
"""A filter whose rows changed in a larger share than this is evaluated anew."""
MAX_HISTORY_ROWS = 1 << 20

Bits = tuple[NDArray[np.bool_], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Allowed:
    """What a filter lets through: `mask` bool (rows,), the trie's bits, the number of items."""

    mask: NDArray[np.bool_]
    trie: TrieFilter
    n_items: int


class History:
    """Rows that each batch of changes touched, for all views of a base. One writer.

    Only the last MAX_HISTORY_ROWS are kept.
    """

    def __init__(self) -> None:
        self._batches: list[NDArray[np.int64] | None] = []
        self._kept_rows = 0
        self._first_kept = 0

    def append(self, rows: NDArray[np.int64]) -> None:
        self._batches.append(rows)
        self._kept_rows += len(rows)
        while self._kept_rows > MAX_HISTORY_ROWS:
            dropped = self._batches[self._first_kept]
            self._kept_rows -= 0 if dropped is None else len(dropped)
            self._batches[self._first_kept] = None
            self._first_kept += 1

    def since(self, first: int, end: int) -> NDArray[np.int64] | None:
        """Rows of batches first, …, end - 1, ascending, distinct; None when no longer known."""
        parts = self._batches[first:end]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return np.unique(np.concatenate(known)) if known else np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A filter's state in the view after `batch` batches of changes.

    `static`: rows that hold the conditions on unchanging fields, None without any. `base_bits`:
    the base trie's nodes that lead to an allowed leaf of the base.
    """

    batch: int
    static: NDArray[np.bool_] | None
    base_bits: Bits
    allowed: Allowed

    @property
    def n_bytes(self) -> int:
        arrays = [*self.base_bits, *self.allowed.trie.bits, self.allowed.mask]
        if self.static is not None:
            arrays.append(self.static)
        return sum(array.nbytes for array in {id(array): array for array in arrays}.values())


@dataclass(slots=True, eq=False)
class _Slot:
    lock: Lock = field(default_factory=Lock)
    entry: _Entry | None = None


class FilterCache:
    """The filters used last on the views of one base. Safe to share between threads."""

    def __init__(self, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._slots: OrderedDict[ItemFilter, _Slot] = OrderedDict()
        self._lock = Lock()
        self.hits = 0
        self.patches = 0
        self.misses = 0

    def allowed(self, filters: ItemFilter, view: CatalogueView) -> Allowed:
        """What a filter lets through in a view."""
        with self._lock:
            slot = self._slots.setdefault(filters, _Slot())
            self._slots.move_to_end(filters)
        entry = slot.entry
        if entry is not None and entry.batch == view.batch:
            self.hits += 1
            return entry.allowed
        with slot.lock:
            entry = slot.entry
            if entry is not None and entry.batch == view.batch:
                self.hits += 1
                return entry.allowed
            fresh = None
            if entry is not None and entry.batch < view.batch:
                fresh = _patched(entry, filters, view)
                self.patches += fresh is not None
            if fresh is None:
                fresh = _evaluated(filters, view)
                self.misses += 1
            if entry is None or entry.batch < view.batch:
                slot.entry = fresh
        if entry is None:
            self._shrink()
        return fresh.allowed

    def _shrink(self) -> None:
        """Forget the filters used longest ago until the rest fits."""
        with self._lock:
            entries = [(key, slot.entry) for key, slot in self._slots.items()]
            total = sum(entry.n_bytes for _, entry in entries if entry is not None)
            for key, entry in entries[:-1]:
                if total <= self._max_bytes:
                    break
                del self._slots[key]
                total -= 0 if entry is None else entry.n_bytes


def _evaluated(filters: ItemFilter, view: CatalogueView) -> _Entry:
    """A filter on the whole of a view."""
    static = view.items.static_mask(filters, 0)
    mask = view.items.numbers_hold(filters)
    if static is not None:
        mask &= static
    base = view.base.trie
    leaf_mask = view.postings.leaf_mask(mask)
    bits = base.filter(leaf_mask[: base.n_leaves]).bits
    return _entry(view, static, mask, bits)


def _patched(entry: _Entry, filters: ItemFilter, view: CatalogueView) -> _Entry | None:
    """The entry of an earlier view brought to this one; None where too much changed."""
    rows = view.history.since(entry.batch, view.batch)
    n_before, n_rows = len(entry.allowed.mask), len(view.items)
    if rows is None or len(rows) > MAX_PATCHED_SHARE * n_rows:
        return None
    static = entry.static
    if static is not None and n_rows > n_before:
        new = view.items.static_mask(filters, n_before)
        assert new is not None
        static = np.concatenate([static, new])
    holds = view.items.numbers_hold(filters, rows)
    if static is not None:
        holds &= static[rows]
    before = np.zeros(len(rows), dtype=np.bool_)
    known = rows < n_before
    before[known] = entry.allowed.mask[rows[known]]
    changed = rows[holds != before]
    if not len(changed) and n_rows == n_before:
        return _Entry(view.batch, static, entry.base_bits, entry.allowed)
    mask = np.zeros(n_rows, dtype=np.bool_)
    mask[:n_before] = entry.allowed.mask
    mask[rows] = holds
    leaves = np.unique(view.postings.leaf_of_row[changed])
    leaves = leaves[leaves < view.base.trie.n_leaves]
    items, place = view.postings.rows_of(leaves)
    reached = np.zeros(len(leaves), dtype=np.bool_)
    reached[place[mask[items]]] = True
    bits = _with_leaves(view.base.trie, entry.base_bits, leaves, reached)
    return _entry(view, static, mask, bits)


def _entry(
    view: CatalogueView, static: NDArray[np.bool_] | None, mask: NDArray[np.bool_], base_bits: Bits
) -> _Entry:
    trie = view.live_trie
    bits = base_bits
    if len(trie.added_keys):
        added = [np.zeros(len(level.codes), dtype=np.bool_) for level in trie.added]
        whole = [np.concatenate(pair) for pair in zip(base_bits, added, strict=True)]
        sids = view.postings.sids[mask[len(view.base.items) :]]
        whole[-1][leaves_of_sids(trie, sids[sids >= trie.base.n_leaves])] = True
        trie.raise_added(whole)
        bits = tuple(whole)
    for array in (mask, *bits):
        array.flags.writeable = False
    n_leaves = int(np.count_nonzero(bits[-1]))
    allowed = Allowed(mask, TrieFilter(bits, n_leaves), int(np.count_nonzero(mask)))
    return _Entry(view.batch, static, base_bits, allowed)


def _with_leaves(
    trie: Trie, bits: Bits, leaves: NDArray[np.int64], reached: NDArray[np.bool_]
) -> Bits:
    """Bits of a trie's nodes with those of some leaves set or cleared, and their ancestors'."""
    result: list[NDArray[np.bool_]] = list(bits)
    nodes, values = leaves, reached
    for level in reversed(range(trie.layout.levels)):
        differs = bits[level][nodes] != values
        nodes, values = nodes[differs], values[differs]
        if not len(nodes):
            break
        result[level] = bits[level].copy()
        result[level][nodes] = values
        if level:
            nodes = np.unique(trie.parents(level, nodes))
            values = any_child(*trie.children(level - 1, nodes), result[level])
    return tuple(result)
