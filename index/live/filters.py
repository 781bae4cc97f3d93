"""What a filter lets through in a view: rows, SIDs, and how many of each; kept and mended.

A filter is evaluated once on the whole catalogue. Its bits in later views of the same base are
mended where rows changed (`index.live.sheets`). That happens in place, in memory that held its
bits in an earlier view and that nobody reads any more; so a filter in use has memory for two views
mostly. What somebody still reads is copied. Where too much changed it is evaluated anew.

The conditions on fields that never change (brand, category, color, material) are kept apart from
those on price and stock: of a changed row only the latter are judged anew.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from index.items import ItemFilter
from index.live.arrays import Tail
from index.live.sheets import BaseArrays, Sheet
from index.trie import TrieFilter

if TYPE_CHECKING:
    from index.live.view import CatalogueView

MAX_CACHE_BYTES = 256 << 20
MAX_FILTERS = 4_096
"""Kept at the same time, however small they are."""
MAX_PATCHED_SHARE = 0.125
"""A filter whose rows changed in a larger share than this is evaluated anew."""
MAX_HISTORY_ROWS = 1 << 20
MAX_ENTRIES = 2
"""Views whose bits are at hand: the newest, and the one that searches may just have taken."""
MAX_ASIDE = 2
"""Sheets of earlier views, to be mended."""
_UNREAD = 2
"""References to memory that only its sheet has: the sheet's and the one that asks."""


@dataclass(frozen=True, slots=True, eq=False)
class Allowed:
    """What a filter lets through: `mask` bool (rows,), the trie's bits, the number of items.

    Nobody writes what somebody holds one of these arrays of, or a view of it.
    """

    mask: NDArray[np.bool_]
    trie: TrieFilter
    n_items: int


class History:
    """Rows that each batch of changes touched, for all views of a base: those that went or came,
    and those of a new price or stock. One writer.

    Only the last MAX_HISTORY_ROWS are kept.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[NDArray[np.int64], ...] | None] = []
        self._kept_rows = 0
        self._first_kept = 0

    def append(
        self, touched: NDArray[np.int64], price: NDArray[np.int64], stock: NDArray[np.int64]
    ) -> None:
        # Copies: what the rows came in is larger than they are.
        self._batches.append((touched.copy(), price.copy(), stock.copy()))
        self._kept_rows += len(touched) + len(price) + len(stock)
        while self._kept_rows > MAX_HISTORY_ROWS:
            dropped = self._batches[self._first_kept]
            self._kept_rows -= 0 if dropped is None else sum(map(len, dropped))
            self._batches[self._first_kept] = None
            self._first_kept += 1

    def since(self, first: int, end: int, filters: ItemFilter) -> NDArray[np.int64] | None:
        """Rows of batches first, …, end - 1 that a filter may judge otherwise than before, maybe
        repeated; None when no longer known."""
        batches = self._batches[first:end]
        known = [batch for batch in batches if batch is not None]
        if len(known) < len(batches):
            return None
        parts = [batch[0] for batch in known]
        if filters.price_min is not None or filters.price_max is not None:
            parts += [batch[1] for batch in known]
        if filters.in_stock:
            parts += [batch[2] for batch in known]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A filter in the view after `batch` batches. Whoever has it has the sheet's memory, too."""

    batch: int
    sheet: Sheet
    allowed: Allowed

    @classmethod
    def of(cls, sheet: Sheet) -> _Entry:
        mask, *bits = sheet.parts()
        allowed = Allowed(mask, TrieFilter(tuple(bits), sheet.n_leaves), sheet.n_items)
        return cls(sheet.batch, sheet, allowed)


@dataclass(slots=True, eq=False)
class _Slot:
    """A filter's last entries, newest first; sheets of earlier ones, newest last; and which rows
    hold its conditions on unchanging fields, None without any. Changed under its lock; the entries
    are read without."""

    lock: Lock = field(default_factory=Lock)
    entries: tuple[_Entry, ...] = ()
    aside: list[Sheet] = field(default_factory=list[Sheet])
    static: Tail[np.bool_] | None = None
    counted_bytes: int = 0
    """What the cache has counted for it."""

    def at(self, batch: int) -> _Entry | None:
        """The entry of the view after so many batches."""
        for entry in self.entries:
            if entry.batch == batch:
                return entry
        return None

    def make_room(self) -> None:
        """Lay aside what a newer entry leaves behind: once nobody reads it, it is mended."""
        behind = [one.sheet for one in self.entries[MAX_ENTRIES - 1 :]]
        self.entries = self.entries[: MAX_ENTRIES - 1]
        self.aside = [*self.aside, *behind][-MAX_ASIDE:]

    def extend_static(self, filters: ItemFilter, view: CatalogueView) -> None:
        """Judge rows not seen before by the conditions on unchanging fields."""
        known = 0 if self.static is None else len(self.static.values)
        if known and known >= len(view.items):
            return
        new = view.items.static_mask(filters, known)
        if new is not None and self.static is None:
            self.static = Tail(new)
        elif new is not None and self.static is not None:
            self.static.append(new)

    @property
    def static_values(self) -> NDArray[np.bool_] | None:
        return None if self.static is None else self.static.values

    @property
    def n_bytes(self) -> int:
        static = 0 if self.static is None else self.static.values.nbytes
        sheets = [*self.aside, *(entry.sheet for entry in self.entries)]
        return static + sum(sheet.memory.nbytes for sheet in sheets)


class FilterCache:
    """The filters used last on the views of one base. Safe to share between threads."""

    def __init__(self, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._slots: OrderedDict[ItemFilter, _Slot] = OrderedDict()
        self._n_bytes = 0
        self._lock = Lock()
        self._base: BaseArrays | None = None
        self.hits = 0
        self.patches = 0
        self.misses = 0

    @property
    def n_bytes(self) -> int:
        """Memory of what is kept."""
        return self._n_bytes

    def allowed(self, filters: ItemFilter, view: CatalogueView) -> Allowed:
        """What a filter lets through in a view."""
        with self._lock:
            slot = self._slots.setdefault(filters, _Slot())
            self._slots.move_to_end(filters)
            base = self._base
            if base is None:
                base = self._base = BaseArrays.of(view)
        entry = slot.at(view.batch)
        if entry is not None:
            self.hits += 1
            return entry.allowed
        with slot.lock:
            entry = slot.at(view.batch)
            if entry is not None:
                self.hits += 1
                return entry.allowed
            entry = self._made(slot, filters, view, base)
            self._count(filters, slot)
        return entry.allowed

    def _made(
        self, slot: _Slot, filters: ItemFilter, view: CatalogueView, base: BaseArrays
    ) -> _Entry:
        """The entry of a view that has none; the slot is locked."""
        slot.extend_static(filters, view)
        is_newest = not slot.entries or slot.entries[0].batch < view.batch
        if is_newest:
            slot.make_room()
        sheet = _mended(slot, filters, view, base) if slot.entries and is_newest else None
        if sheet is None:
            sheet = _evaluated(slot, filters, view, base)
            self.misses += 1
        else:
            self.patches += 1
        entry = _Entry.of(sheet)
        if is_newest:
            slot.entries = (entry, *slot.entries)
        return entry

    def _count(self, filters: ItemFilter, slot: _Slot) -> None:
        """Count what a slot has become, and forget the filters used longest ago until the rest
        fits."""
        n_bytes = slot.n_bytes
        with self._lock:
            if self._slots.get(filters) is not slot:
                return
            self._n_bytes += n_bytes - slot.counted_bytes
            slot.counted_bytes = n_bytes
            while len(self._slots) > 1 and (
                self._n_bytes > self._max_bytes or len(self._slots) > MAX_FILTERS
            ):
                _, dropped = self._slots.popitem(last=False)
                self._n_bytes -= dropped.counted_bytes


def _evaluated(slot: _Slot, filters: ItemFilter, view: CatalogueView, base: BaseArrays) -> Sheet:
    """A filter on the whole of a view."""
    static = slot.static_values
    mask = view.items.numbers_hold(filters)
    if static is not None:
        mask &= static[: len(mask)]
    trie = view.base.trie
    leaf_mask = view.postings.leaf_mask(mask)
    sheet = Sheet.of(view, mask, trie.filter(leaf_mask[: trie.n_leaves]).bits)
    sheet.mend(view, base, filters, static, np.empty(0, dtype=np.int64))
    return sheet


def _mended(
    slot: _Slot, filters: ItemFilter, view: CatalogueView, base: BaseArrays
) -> Sheet | None:
    """The slot's youngest bits that may be written, or a copy of its newest, brought to a view
    behind all of its own; None where too much changed."""
    sheet = _unread(slot, view)
    since = slot.entries[0].sheet if sheet is None else sheet
    rows = view.history.since(since.batch, view.batch, filters)
    if rows is None or len(rows) > MAX_PATCHED_SHARE * len(view.items):
        return None
    if sheet is None:
        sheet = since.copy_for(view)
    sheet.mend(view, base, filters, slot.static_values, rows)
    return sheet


def _unread(slot: _Slot, view: CatalogueView) -> Sheet | None:
    """The youngest of the sheets laid aside that nobody reads, taken from there; None where there
    is none. Whoever reads one holds arrays that are views of its memory: references to that tell.
    """
    for place in reversed(range(len(slot.aside))):
        sheet = slot.aside[place]
        if sys.getrefcount(sheet.memory) == _UNREAD:
            del slot.aside[place]
            if sheet.has_room(view):
                return sheet
    return None
