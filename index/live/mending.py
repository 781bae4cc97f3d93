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
from numba import njit, types
from numpy.typing import NDArray

from index.items import ItemFilter
from index.live.arrays import Column
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
    room: NDArray[np.int64]
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
        return cls(memory, at, room, used, raised, view.batch, 0, 0, 0)

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
        return bool((self.room >= _lengths(view)).all())

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
            found = _mend(*arguments)
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


def _ro(kind: Any) -> Any:
    return types.Array(kind, 1, "C", readonly=True)


_B, _I, _F = types.boolean[::1], types.int64[::1], types.float64[::1]
_U2, _U4, _RO4 = types.uint16[::1], types.uint32[::1], _ro(types.uint32)


@njit(inline="always")
def _value(newest: NDArray[Any], changed: NDArray[np.int64], before: NDArray[Any], row: int) -> Any:
    """A column's value of one row."""
    low, high = 0, len(changed)
    while low < high:
        middle = (low + high) >> 1
        if changed[middle] < row:
            low = middle + 1
        else:
            high = middle
    if low < len(changed) and changed[low] == row:
        return before[low]
    return newest[row]


@njit(inline="always")
def _parent(
    level: int,
    node: Any,
    blocks: NDArray[np.uint32],
    block_at: NDArray[np.int64],
    deltas: NDArray[np.uint16],
    delta_at: NDArray[np.int64],
    shifts: NDArray[np.int64],
) -> int:
    """The node of `level` whose children have `node` among them."""
    low, high = block_at[level], block_at[level + 1]
    while high - low > 1:
        middle = (low + high) >> 1
        if blocks[middle] <= node:
            low = middle
        else:
            high = middle
    rest = node - np.int64(blocks[low])
    first = delta_at[level]
    begin = first + ((low - block_at[level]) << shifts[level])
    end = min(begin + (1 << shifts[level]), delta_at[level + 1])
    while end - begin > 1:
        middle = (begin + end) >> 1
        if deltas[middle] <= rest:
            begin = middle
        else:
            end = middle
    return begin - first


@njit(
    types.Tuple((types.int64, types.int64, types.int64, _I))(
        *(_B, _I, _I, _I, _I, _I, _I, _B, types.boolean),
        *(_ro(types.boolean), _I, _B, types.boolean),
        *(_ro(types.float64), _I, _F, types.float64, types.float64),
        *(_ro(types.int64), _I, _I, types.boolean),
        *(_I, _U4, _I, _U2, _I, _I, _RO4, _RO4, _RO4),
        *(_I, _I, _I, _I, _I, _I, types.int64[:, ::1]),
    ),
    cache=True,
    nogil=True,
)
def _mend(
    memory: NDArray[np.bool_],
    at: NDArray[np.int64],
    used: NDArray[np.int64],
    lengths: NDArray[np.int64],
    raised: NDArray[np.int64],
    known: NDArray[np.int64],
    rows: NDArray[np.int64],
    static: NDArray[np.bool_],
    has_static: bool,
    alive: NDArray[np.bool_],
    alive_changed: NDArray[np.int64],
    alive_before: NDArray[np.bool_],
    has_alive: bool,
    price: NDArray[np.float64],
    price_changed: NDArray[np.int64],
    price_before: NDArray[np.float64],
    price_low: float,
    price_high: float,
    stock: NDArray[np.int64],
    stock_changed: NDArray[np.int64],
    stock_before: NDArray[np.int64],
    in_stock: bool,
    counts: NDArray[np.int64],
    blocks: NDArray[np.uint32],
    block_at: NDArray[np.int64],
    deltas: NDArray[np.uint16],
    delta_at: NDArray[np.int64],
    shifts: NDArray[np.int64],
    start: NDArray[np.uint32],
    base_rows: NDArray[np.uint32],
    leaf_of_row: NDArray[np.uint32],
    sids: NDArray[np.int64],
    sorted_sids: NDArray[np.int64],
    sorted_rows: NDArray[np.int64],
    leaf_of_id: NDArray[np.int64],
    parents: NDArray[np.int64],
    starts: NDArray[np.int64],
    table: NDArray[np.int64],
) -> tuple[int, int, int, NDArray[np.int64]]:
    """`Sheet.mend`; returns items, leaves of the base, all leaves, and what was raised."""
    levels, n_base_rows = len(counts), len(leaf_of_row)
    n_items, n_leaves = known[0], known[1]
    leaf_at, n_base_leaves = at[levels], counts[levels - 1]
    mask_at = at[0]
    # Back to the state without added leaves.
    for place in raised:
        memory[place] = False
    for level in range(levels):
        first = at[level + 1] + counts[level]
        memory[first : at[level + 1] + max(used[level + 1], lengths[level + 1])] = False
    memory[mask_at + used[0] : mask_at + lengths[0]] = False
    # Rows.
    leaves = np.empty(len(rows), dtype=np.int64)
    n_changed = 0
    for row in rows:
        holds = not has_static or static[row]
        if holds and has_alive:
            holds = _value(alive, alive_changed, alive_before, row)
        if holds and (price_low == price_low or price_high == price_high):
            value = _value(price, price_changed, price_before, row)
            holds = value == value and not value < price_low and not value > price_high
        if holds and in_stock:
            holds = _value(stock, stock_changed, stock_before, row) != 0
        if memory[mask_at + row] == holds:
            continue
        memory[mask_at + row] = holds
        n_items += 1 if holds else -1
        leaf = np.int64(leaf_of_row[row]) if row < n_base_rows else sids[row - n_base_rows]
        if leaf < n_base_leaves:
            leaves[n_changed] = leaf
            n_changed += 1
    # Leaves of the base, and what is above them.
    for number in range(n_changed):
        leaf = leaves[number]
        bit = False
        for place in range(start[leaf], start[leaf + 1]):
            if memory[mask_at + base_rows[place]]:
                bit = True
                break
        if not bit and len(sorted_sids):
            low, high = 0, len(sorted_sids)
            while low < high:
                middle = (low + high) >> 1
                if sorted_sids[middle] < leaf:
                    low = middle + 1
                else:
                    high = middle
            while low < len(sorted_sids) and sorted_sids[low] == leaf:
                if memory[mask_at + sorted_rows[low]]:
                    bit = True
                    break
                low += 1
        if memory[leaf_at + leaf] == bit:
            continue
        memory[leaf_at + leaf] = bit
        n_leaves += 1 if bit else -1
        node = leaf
        for level in range(levels - 2, -1, -1):
            node = _parent(level, node, blocks, block_at, deltas, delta_at, shifts)
            if memory[at[level + 1] + node] and bit:
                break
            if not bit:
                shift, first = shifts[level], delta_at[level] + node
                begin = np.int64(blocks[block_at[level] + (node >> shift)]) + deltas[first]
                end = np.int64(blocks[block_at[level] + ((node + 1) >> shift)]) + deltas[first + 1]
                some = False
                for child in range(begin, end):
                    if memory[at[level + 2] + child]:
                        some = True
                        break
                if some:
                    break
            memory[at[level + 1] + node] = bit
    # Added leaves, and what is above them.
    n_all = n_leaves
    for item in range(len(sids)):
        if sids[item] >= n_base_leaves and memory[mask_at + n_base_rows + item]:
            place = leaf_at + leaf_of_id[sids[item] - n_base_leaves]
            n_all += not memory[place]
            memory[place] = True
    room = 0
    for level in range(1, levels):
        room += table[level, 1] * level
    newly = np.empty(room, dtype=np.int64)
    n_raised = 0
    for level in range(levels - 1, 0, -1):
        first_node = at[level + 1] + counts[level]
        for number in range(table[level, 1]):
            begin = starts[table[level, 2] + number]
            end = starts[table[level, 2] + number + 1]
            some = False
            for child in range(first_node + begin, first_node + end):
                if memory[child]:
                    some = True
                    break
            if not some:
                continue
            node = parents[table[level, 0] + number]
            above = level - 1
            if node >= counts[above]:
                memory[at[level] + node] = True
                continue
            while not memory[at[above + 1] + node]:
                memory[at[above + 1] + node] = True
                newly[n_raised] = at[above + 1] + node
                n_raised += 1
                if above == 0:
                    break
                above -= 1
                node = _parent(above, node, blocks, block_at, deltas, delta_at, shifts)
    return n_items, n_leaves, n_all, newly[:n_raised].copy()
