"""The legal SIDs as a trie of arrays, level by level.

Nodes of a level are numbered in SID order, so the children of a node are one contiguous run of the
next level, every node covers one contiguous run of leaves, and leaf j is the j-th smallest key.
The nodes of the last level are the leaves; the root's children are all nodes of level 0.

Stored per node: its code (one or two bytes) and, but for leaves, where its children start, in the
compact form of index/starts.py (a little over two bytes). Keys, plain starts and leaf ranges follow
from that and are computed when first asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from index.arrays import open_array, save_arrays
from index.errors import ArtifactError, ConfigError
from index.sid import SidLayout
from index.starts import Nodes, Starts, StartsBuilder, packed_words

MAX_LEAVES = (1 << 32) - 1
_BUILD_CHUNK = 1 << 14
_FACTS = "trie.json"

Codes = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True, eq=False)
class TrieFilter:
    """Which nodes lead to an allowed leaf: one bool per node and level."""

    bits: tuple[NDArray[np.bool_], ...]
    n_leaves: int


@dataclass(frozen=True, eq=False)
class Trie:
    """The legal SIDs of a layout. Immutable; safe to share between threads.

    `codes[l]`: the code of each node of level l, uint8 where the level has at most 256 codes, else
    uint16. `starts[l]`, l < L - 1: compact starts of the children, n_l + 1 offsets.
    """

    layout: SidLayout
    codes: tuple[Codes, ...]
    starts: tuple[Starts, ...]
    node_counts: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "node_counts", tuple(len(codes) for codes in self.codes))

    @classmethod
    def build(
        cls, layout: SidLayout, keys: NDArray[np.uint64], *, assume_sorted: bool = False
    ) -> Trie:
        """Build from packed SIDs, uint64 (n,); duplicates count once.

        With `assume_sorted` the keys must be strictly increasing (checked). Raises ConfigError for
        keys outside the layout or out of order.
        """
        keys = np.asarray(keys, dtype=np.uint64)
        if not assume_sorted:
            keys = _sorted_distinct(keys)
        if len(keys) > MAX_LEAVES:
            raise ConfigError(f"{len(keys)} SIDs; a trie holds {MAX_LEAVES}: shard the catalogue")
        # Counted first, then written in place: the build holds the result and one chunk.
        counts = _count_nodes(layout, keys)
        codes: tuple[Codes, ...] = tuple(
            np.empty(count, dtype=np.uint8) if size <= 256 else np.empty(count, dtype=np.uint16)
            for count, size in zip(counts, layout.level_sizes, strict=True)
        )
        starts = [StartsBuilder(count + 1) for count in counts[:-1]]
        _fill(layout, keys, codes, starts)
        finished = tuple(level.finish() for level in starts)
        return cls(layout, tuple(_frozen(level) for level in codes), finished)

    def save(self, directory: Path) -> None:
        """Write `trie.json` and one `.npy` per array."""
        arrays: dict[str, NDArray[Any]] = {
            f"codes_{level}": codes for level, codes in enumerate(self.codes)
        }
        for level, starts in enumerate(self.starts):
            arrays[f"child_base_{level}"] = starts.base
            arrays[f"child_delta_{level}"] = starts.delta
        save_arrays(directory, arrays)
        facts = {
            "layout": self.layout.to_json(),
            "node_counts": self.node_counts,
            "child_shifts": [starts.shift for starts in self.starts],
        }
        (directory / _FACTS).write_text(json.dumps(facts), encoding="utf-8")

    @classmethod
    def open(cls, directory: Path) -> Trie:
        """Memory-map a saved trie. Raises ArtifactError when files are missing or do not agree."""
        directory = Path(directory)
        try:
            facts = cast(dict[str, Any], json.loads((directory / _FACTS).read_bytes()))
            layout = SidLayout.from_json(facts["layout"])
            shifts = [int(shift) for shift in facts["child_shifts"]]
            counts = [int(count) for count in facts["node_counts"]]
        except (OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"{directory} has no readable {_FACTS}: {error}") from None
        codes = tuple(open_array(directory / f"codes_{level}.npy") for level in range(len(counts)))
        starts = tuple(
            Starts(
                open_array(directory / f"child_base_{level}.npy"),
                open_array(directory / f"child_delta_{level}.npy"),
                shift,
            )
            for level, shift in enumerate(shifts)
        )
        agree = [len(part) for part in codes] == counts and [
            len(part.delta) - 1 for part in starts
        ] == counts[:-1]
        if not agree or len(counts) != layout.levels:
            raise ArtifactError(f"the arrays of {directory} do not fit its {_FACTS}; build again")
        return cls(layout, codes, starts)

    @property
    def n_leaves(self) -> int:
        """Number of legal SIDs."""
        return self.node_counts[-1]

    @property
    def n_bytes(self) -> int:
        """Bytes of the stored arrays, without what is computed on demand."""
        return sum(codes.nbytes for codes in self.codes) + sum(s.n_bytes for s in self.starts)

    @property
    def bytes_per_sid(self) -> float:
        """Stored bytes per legal SID; 0 for an empty trie."""
        return self.n_bytes / self.n_leaves if self.n_leaves else 0.0

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """All legal keys, sorted, uint64 (N,). Computed once, 8 bytes per SID."""
        shifts = [np.uint64(shift) for shift in self.layout.shifts]
        keys = self.codes[0].astype(np.uint64) << shifts[0]
        for starts, codes, shift in zip(self.starts, self.codes[1:], shifts[1:], strict=True):
            keys = np.repeat(keys, np.diff(starts.plain()))
            keys |= codes.astype(np.uint64) << shift
        return _frozen(keys)

    @cached_property
    def child_start(self) -> tuple[NDArray[np.uint32], ...]:
        """Plain starts for l < L - 1, uint32 (n_l + 1,): node i's children are the nodes
        [child_start[l][i], child_start[l][i + 1]) of level l + 1. Computed once, 4 bytes per node.
        """
        return tuple(_frozen(starts.plain()) for starts in self.starts)

    @cached_property
    def leaf_start(self) -> tuple[NDArray[np.uint32], ...]:
        """uint32 (n_l + 1,) for every level: node i covers the leaves
        [leaf_start[l][i], leaf_start[l][i + 1]). Computed once, 4 bytes per node.
        """
        below = np.arange(self.n_leaves + 1, dtype=np.uint32)
        levels = [_frozen(below)]
        for starts in reversed(self.starts):
            below = below[starts.plain()]
            levels.append(_frozen(below))
        return tuple(reversed(levels))

    def children(self, level: int, nodes: NDArray[np.integer[Any]]) -> tuple[Nodes, Nodes]:
        """First child and end of children (nodes of `level + 1`) of nodes of `level`, int64."""
        nodes = np.asarray(nodes, dtype=np.int64)
        return self.starts[level].at(nodes), self.starts[level].at(nodes + 1)

    @property
    def added(self) -> tuple[()]:
        """Nothing: what `index.live.trie.LiveTrie` adds to a trie has no part here."""
        return ()

    def codes_at(self, level: int, nodes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Codes of nodes of a level, int64."""
        return self.codes[level][nodes].astype(np.int64)

    def child_with_code(
        self, level: int, parents: Nodes, wanted: NDArray[np.integer[Any]]
    ) -> Nodes:
        """The node of `level` below each parent (node of `level - 1`; any number for the root)
        that has the wanted code, int64; -1 where there is none."""
        if level:
            low, high = self.children(level - 1, parents)
        else:
            low = np.zeros(len(parents), dtype=np.int64)
            high = np.full(len(parents), self.node_counts[0], dtype=np.int64)
        codes = self.codes[level]
        node = _lower_bound(codes, low, high, wanted)
        found = (node < high) & (codes[np.minimum(node, high - 1)] == wanted)
        return np.where(found, node, -1)

    def parents(self, level: int, nodes: NDArray[np.integer[Any]]) -> Nodes:
        """Parent (a node of `level - 1`, `level` ≥ 1) of each node of a level, int64."""
        return self.starts[level - 1].position_of(np.asarray(nodes, dtype=np.int64))

    def leaf_ranges(self, level: int, nodes: NDArray[np.integer[Any]]) -> tuple[Nodes, Nodes]:
        """First leaf and end of leaves of nodes of `level`, int64; follows the starts downwards."""
        first = np.asarray(nodes, dtype=np.int64)
        end = first + 1
        for starts in self.starts[level:]:
            first, end = starts.at(first), starts.at(end)
        return first, end

    def find(self, keys: NDArray[np.uint64] | Sequence[int]) -> Nodes:
        """Leaf of each key, int64 (n,); -1 where the SID is not legal."""
        packed = np.asarray(keys, dtype=np.uint64)
        if not self.n_leaves:
            return np.full(len(packed), -1, dtype=np.int64)
        wanted = self.layout.unpack(packed)
        node = np.zeros(len(wanted), dtype=np.int64)
        found = np.ones(len(wanted), dtype=np.bool_)
        for level in range(self.layout.levels):
            node = self.child_with_code(level, np.maximum(node, 0), wanted[:, level])
            found &= node >= 0
        if (used := sum(self.layout.bits)) < 64:
            found &= packed >> np.uint64(used) == 0
        return np.where(found, node, -1)

    def codes_of_leaves(self, leaves: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """Codes of the given leaves, int32 (n, L)."""
        node = np.asarray(leaves, dtype=np.int64)
        result = np.empty((len(node), self.layout.levels), dtype=np.int32)
        result[:, -1] = self.codes[-1][node]
        for level in range(self.layout.levels - 2, -1, -1):
            node = self.starts[level].position_of(node)
            result[:, level] = self.codes[level][node]
        return result

    def filter(self, leaf_mask: NDArray[np.bool_]) -> TrieFilter:
        """Bits of the nodes that lead to an allowed leaf, from the leaves upwards.

        `leaf_mask`: bool (N,), kept as the bits of the leaves. Raises ConfigError for another
        length. The fewer leaves are allowed, the faster. Not cached here.
        """
        if leaf_mask.shape != (self.n_leaves,) or leaf_mask.dtype != np.bool_:
            raise ConfigError(
                f"expected a bool mask of {self.n_leaves} leaves, "
                f"got {leaf_mask.dtype} {leaf_mask.shape}"
            )
        bits = [leaf_mask]
        words = packed_words(leaf_mask)
        for starts in reversed(self.starts):
            of_level, words = starts.any_set(words)
            bits.append(of_level)
        return TrieFilter(tuple(reversed(bits)), int(np.count_nonzero(leaf_mask)))


def _sorted_distinct(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Like `np.unique`, in one copy where nothing is there twice."""
    keys = np.sort(keys)
    repeats = keys[1:] == keys[:-1]
    return np.delete(keys, np.flatnonzero(repeats)) if repeats.any() else keys


def _count_nodes(layout: SidLayout, keys: NDArray[np.uint64]) -> list[int]:
    """Nodes of each level below keys, which are checked for their order."""
    counts = [0] * layout.levels
    for first in range(0, len(keys), _BUILD_CHUNK):
        changed = _changed(keys, first)
        for level, shift in enumerate(layout.shifts):
            counts[level] += int(np.count_nonzero(changed >> np.uint64(shift)))
            counts[level] += not first and not changed[0] >> np.uint64(shift)
    return counts


def _fill(
    layout: SidLayout,
    keys: NDArray[np.uint64],
    codes: tuple[Codes, ...],
    starts: list[StartsBuilder],
) -> None:
    """Write the codes of each level, and the starts of each but the last.

    A key begins a node of level l when it differs from the key before it in levels 0..l. The first
    child of such a node begins at the same key, so counting begins numbers the children.
    """
    known = [0] * layout.levels
    for first in range(0, len(keys), _BUILD_CHUNK):
        chunk, changed = keys[first : first + _BUILD_CHUNK], _changed(keys, first)
        below: NDArray[np.int64] | None = None
        for level in reversed(range(layout.levels)):
            shift, size = np.uint64(layout.shifts[level]), layout.level_sizes[level]
            begins = changed >> shift != 0
            begins[0] |= not first
            at = np.flatnonzero(begins)
            # The first level keeps all higher bits, so a key beyond the layout is seen here too.
            column = chunk[at] >> shift
            if level:
                column &= np.uint64((1 << layout.bits[level]) - 1)
            if column.max(initial=np.uint64(0)) >= size:
                raise ConfigError(f"a key has code {column.max()} at level {level} of {size} codes")
            codes[level][known[level] : known[level] + len(at)] = column
            if below is not None:
                starts[level].append((below[at] - 1).astype(np.uint32))
            below = np.cumsum(begins) + known[level] if level else None
            known[level] += len(at)
    for level, count in zip(starts, known[1:], strict=True):
        level.append(np.array([count], dtype=np.uint32))


def _changed(keys: NDArray[np.uint64], first: int) -> NDArray[np.uint64]:
    """The bits in which the keys of the chunk from `first` on differ from the key before each;
    before the very first key all are 0. Raises ConfigError unless the keys increase."""
    chunk = keys[first : first + _BUILD_CHUNK]
    before = np.empty_like(chunk)
    before[1:] = chunk[:-1]
    before[0] = keys[first - 1] if first else 0
    increasing = chunk > before
    increasing[0] |= not first
    if not increasing.all():
        raise ConfigError("assume_sorted needs strictly increasing keys; sort them or leave it out")
    return np.bitwise_xor(chunk, before, out=before)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """The array, made read-only: threads share it, and it looks like a memory-mapped one."""
    array.flags.writeable = False
    return array


def _lower_bound(codes: Codes, low: Nodes, high: Nodes, wanted: NDArray[np.integer[Any]]) -> Nodes:
    """For each run [low, high) of sorted codes the first position not below the wanted code."""
    low, high = low.copy(), high.copy()
    while bool(np.any(low < high)):
        middle = (low + high) >> 1
        below = codes[np.minimum(middle, len(codes) - 1)] < wanted
        below &= middle < high
        low = np.where(below, middle + 1, low)
        high = np.where(below, high, np.minimum(middle, high))
    return low
