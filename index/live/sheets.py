"""Bringing what a filter lets through from one view to a later one, in place.

A sheet is one block of bools: the mask of rows, then the trie's nodes level by level, each part
with room behind it for what is added. Only rows that changed are judged anew, then their leaves,
then the leaves' ancestors as far as something changes. What was added to the trie is numbered anew
in every view, so its bits are made anew, and with them those of base nodes that only added leaves
reach: they are noted as `raised`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from index.items import ItemFilter
from index.live.arrays import Column
from index.live.mending import mend
from index.trie import Trie

if TYPE_CHECKING:
    from index.live.view import CatalogueView

_SLACK_SHARE = 16
_SLACK = 1_024
_ALWAYS = np.ones(0, dtype=np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class BaseArrays:
    """What mending reads of a base, in the form that the compiled loop takes: compact starts of all
    levels behind each other with their places, and the postings."""

    counts: NDArray[np.int64]
    blocks: NDArray[np.uint32]
    block_at: NDArray[np.int64]
    deltas: NDArray[np.uint16]
    delta_at: NDArray[np.int64]
    shifts: NDArray[np.int64]
    start: NDArray[np.uint32]
    rows: NDArray[np.uint32]
    leaf_of_row: NDArray[np.uint32]

    @classmethod
    def of(cls, view: CatalogueView) -> BaseArrays:
        trie: Trie = view.base.trie
        postings = view.base.postings
        blocks = [np.empty(0, dtype=np.uint32), *(starts.base for starts in trie.starts)]
        deltas = [np.empty(0, dtype=np.uint16), *(starts.delta for starts in trie.starts)]
        return cls(
            np.array(trie.node_counts, dtype=np.int64),
            np.concatenate(blocks).astype(np.uint32),
            np.cumsum([len(part) for part in blocks]),
            np.concatenate(deltas).astype(np.uint16),
            np.cumsum([len(part) for part in deltas]),
            np.array([starts.shift for starts in trie.starts], dtype=np.int64),
            *(_read_only(part) for part in (postings.start, postings.rows, postings.leaf_of_row)),
        )


@dataclass(slots=True, eq=False)
class Sheet:
    """A filter's bits in the view after `batch` batches; see the module's head.

    `at`: int64 (L + 1,), where the mask and the levels begin in `memory`; `room` the length of
    each. `raised`: places in `memory`. `n_base_leaves`: allowed leaves of the base.
    """

    memory: NDArray[np.bool_]
    at: NDArray[np.int64]
    room: tuple[int, ...]
    used: NDArray[np.int64]
    raised: NDArray[np.int64]
    batch: int
    n_items: int
    n_base_leaves: int
    n_leaves: int

    @classmethod
    def of(
        cls, view: CatalogueView, mask: NDArray[np.bool_], base_bits: tuple[NDArray[np.bool_], ...]
    ) -> Sheet:
        """From a mask of the view's rows and the bits of the base's nodes above allowed leaves of
        the base. `mended` must follow: nothing that was added has its bit."""
        sheet = cls._empty(view)
        for place, bits in zip(sheet.at.tolist(), (mask, *base_bits), strict=True):
            sheet.memory[place : place + len(bits)] = bits
        sheet.used[:] = [len(mask), *(len(bits) for bits in base_bits)]
        sheet.n_items = int(np.count_nonzero(mask))
        sheet.n_base_leaves = int(np.count_nonzero(base_bits[-1]))
        return sheet

    @classmethod
    def _empty(cls, view: CatalogueView) -> Sheet:
        used = np.array(_lengths(view), dtype=np.int64)
        room = used + used // _SLACK_SHARE + _SLACK
        at = np.cumsum(room) - room
        memory = np.empty(int(room.sum()), dtype=np.bool_)
        raised = np.empty(0, dtype=np.int64)
        return cls(memory, at, tuple(room.tolist()), used, raised, view.batch, 0, 0, 0)

    def copy_for(self, view: CatalogueView) -> Sheet:
        """The same in memory of its own, with room for a later view."""
        copy = Sheet._empty(view)
        copy.used = self.used.copy()
        for place, own, length in zip(
            copy.at.tolist(), self.at.tolist(), self.used.tolist(), strict=True
        ):
            copy.memory[place : place + length] = self.memory[own : own + length]
        part = np.searchsorted(self.at, self.raised, side="right") - 1
        copy.raised = self.raised - self.at[part] + copy.at[part]
        copy.batch, copy.n_items = self.batch, self.n_items
        copy.n_base_leaves, copy.n_leaves = self.n_base_leaves, self.n_leaves
        return copy

    def has_room(self, view: CatalogueView) -> bool:
        """Whether a view's rows and nodes fit."""
        return all(length <= room for length, room in zip(_lengths(view), self.room, strict=True))

    def parts(self) -> tuple[NDArray[np.bool_], ...]:
        """The mask and the bits of each level, to be read only."""
        parts = [
            self.memory[place : place + length]
            for place, length in zip(self.at.tolist(), self.used.tolist(), strict=True)
        ]
        for part in parts:
            part.flags.writeable = False
        return tuple(parts)

    def mend(
        self,
        view: CatalogueView,
        base: BaseArrays,
        filters: ItemFilter,
        static: NDArray[np.bool_] | None,
        rows: NDArray[np.int64],
    ) -> None:
        """Go on to a view not before this one's, in which `rows` (any order) are to be judged anew,
        all added since among them. `static`: which rows hold the conditions on unchanging fields;
        None without any."""
        items, trie, postings = view.items, view.live_trie, view.postings
        low, high = filters.price_min, filters.price_max
        alive = items.alive
        price = None if low is None and high is None else items.price
        stock = items.stock if filters.in_stock else None
        lengths = np.array(_lengths(view), dtype=np.int64)
        while True:
            columns = [
                _column(alive, np.bool_),
                _column(price, np.float64),
                _column(stock, np.int64),
            ]
            arguments: list[Any] = [
                self.memory,
                self.at,
                self.used,
                lengths,
                self.raised,
                np.array([self.n_items, self.n_base_leaves]),
                rows,
                _ALWAYS if static is None else static,
                static is not None,
                *columns[0],
                alive is not None,
                *columns[1],
                np.nan if low is None else low,
                np.nan if high is None else high,
                *columns[2],
                filters.in_stock,
                base.counts,
                base.blocks,
                base.block_at,
                base.deltas,
                base.delta_at,
                base.shifts,
                base.start,
                base.rows,
                base.leaf_of_row,
                postings.sids,
                postings.sorted_sids,
                postings.sorted_rows,
                trie.leaf_of_id,
                trie.parents,
                trie.starts,
                trie.table,
            ]
            found = mend(*arguments)
            self.n_items, self.n_base_leaves, self.n_leaves, self.raised = found
            self.used = lengths
            changed = zip((alive, price, stock), columns, strict=True)
            if all(one is None or one.changed_since()[0] is known[1] for one, known in changed):
                break
            # Values were written over while they were read: the same rows once more.
        self.batch = view.batch


def _lengths(view: CatalogueView) -> list[int]:
    return [len(view.items), *view.live_trie.node_counts]


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


_NO_ROWS = np.empty(0, dtype=np.int64)
_NONE: dict[type[np.generic], tuple[NDArray[Any], ...]] = {
    kind: (_read_only(np.empty(0, dtype=kind)), _NO_ROWS, np.empty(0, dtype=kind))
    for kind in (np.bool_, np.int64, np.float64)
}


def _column(column: Column[Any] | None, kind: type[np.generic]) -> tuple[NDArray[Any], ...]:
    """A column's newest values, the rows changed since, and their values."""
    return _NONE[kind] if column is None else (column.newest, *column.changed_since())
