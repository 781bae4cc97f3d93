"""The legal SIDs as a trie of arrays, level by level.

Nodes of a level are numbered in SID order, so the children of a node are one contiguous run of the
next level, every node covers one contiguous run of leaves, and leaf j is the j-th smallest key.
The nodes of the last level are the leaves; the root's children are all nodes of level 0.

Stored per node: its code (one or two bytes) and, but for leaves, where its children start. Starts
grow with the node number, so they are kept as one uint32 per block of nodes and one uint16 per
node:

    child_start(i) = child_base[i >> child_shift] + child_delta[i]

A level takes the largest blocks (64 nodes at most) whose differences fit; a level with enormous
nodes falls back to blocks of one. Keys, plain starts and leaf ranges follow from that and are
computed when first asked for.
"""

# The compact starts are the trie's own; its functions below read them for all of this module.
# pyright: reportPrivateUsage=false
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

MAX_LEAVES = (1 << 32) - 1
BLOCK_SHIFTS = (6, 4, 2, 0)
_BUILD_CHUNK = 1 << 18
_FACTS = "trie.json"

Codes = NDArray[np.uint8] | NDArray[np.uint16]
Nodes = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TrieFilter:
    """Which nodes lead to an allowed leaf: one bool per node and level."""

    bits: tuple[NDArray[np.bool_], ...]
    n_leaves: int


@dataclass(frozen=True, slots=True, eq=False)
class Starts:
    """An increasing sequence of n + 1 offsets in compact form; see the module's head."""

    base: NDArray[np.uint32]
    delta: NDArray[np.uint16]
    shift: int

    @classmethod
    def compress(cls, starts: NDArray[np.uint32]) -> Starts:
        """`starts`: uint32 (n + 1,), strictly increasing."""
        for shift in BLOCK_SHIFTS:
            base = starts[:: 1 << shift].copy()
            delta = starts - np.repeat(base, 1 << shift)[: len(starts)]
            if delta.max(initial=0) <= np.iinfo(np.uint16).max:
                return cls(_frozen(base), _frozen(delta.astype(np.uint16)), shift)
        raise AssertionError("blocks of one node always fit")

    @property
    def n_bytes(self) -> int:
        return self.base.nbytes + self.delta.nbytes

    def at(self, positions: Nodes) -> Nodes:
        """Offsets at the given positions, int64."""
        return self.base[positions >> self.shift].astype(np.int64) + self.delta[positions]

    def plain(self) -> NDArray[np.uint32]:
        """All n + 1 offsets as uint32."""
        starts = np.repeat(self.base, 1 << self.shift)[: len(self.delta)]
        starts += self.delta
        return starts

    def position_of(self, values: Nodes) -> Nodes:
        """For each value the last position whose offset is not above it."""
        block = np.searchsorted(self.base, values, side="right") - 1
        low = block << self.shift
        high = np.minimum(low + (1 << self.shift), len(self.delta))
        rest = values - self.base[block]
        for _ in range(self.shift):
            middle = (low + high) >> 1
            below = self.delta[np.minimum(middle, high - 1)] <= rest
            below &= middle < high
            low = np.where(below, middle, low)
            high = np.where(below, high, middle)
        return low


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
            keys = np.unique(keys)
        if len(keys) > MAX_LEAVES:
            raise ConfigError(f"{len(keys)} SIDs; a trie holds {MAX_LEAVES}: shard the catalogue")
        codes: list[list[NDArray[Any]]] = [[] for _ in layout.level_sizes]
        starts: list[list[NDArray[np.uint32]]] = [[] for _ in layout.level_sizes[:-1]]
        for first in range(0, len(keys), _BUILD_CHUNK):
            _append_chunk(layout, keys, first, codes, starts)
        counts = [sum(map(len, parts)) for parts in codes]
        merged_codes: list[Codes] = []
        for level, size in enumerate(layout.level_sizes):
            merged_codes.append(_frozen(_merge(codes[level], _code_type(size))))
        merged_starts: list[Starts] = []
        for level, parts in enumerate(starts):
            parts.append(np.array([counts[level + 1]], dtype=np.uint32))
            merged_starts.append(Starts.compress(_merge(parts, np.uint32)))
        return cls(layout, tuple(merged_codes), tuple(merged_starts))

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
        """Bits of the nodes that lead to an allowed leaf, by prefix sums from the leaves upwards.

        `leaf_mask`: bool (N,). Raises ConfigError for another length. Not cached here.
        """
        if leaf_mask.shape != (self.n_leaves,) or leaf_mask.dtype != np.bool_:
            raise ConfigError(
                f"expected a bool mask of {self.n_leaves} leaves, "
                f"got {leaf_mask.dtype} {leaf_mask.shape}"
            )
        bits = [leaf_mask]
        sums = np.zeros(self.n_leaves + 1, dtype=np.uint32)
        np.cumsum(leaf_mask, out=sums[1:], dtype=np.uint32)
        for starts in reversed(self.starts):
            # A node's leaves are its children's leaves: the same sums serve every level.
            sums = sums[starts.plain()]
            bits.append(sums[1:] != sums[:-1])
        return TrieFilter(tuple(reversed(bits)), int(np.count_nonzero(leaf_mask)))


def _append_chunk(
    layout: SidLayout,
    keys: NDArray[np.uint64],
    first: int,
    codes: list[list[NDArray[Any]]],
    starts: list[list[NDArray[np.uint32]]],
) -> None:
    """Add the nodes that begin at keys [first, first + chunk) to the parts of each level.

    A key begins a node of level l when it differs from the key before it in levels 0..l. The first
    child of such a node begins at the same key, so counting begins numbers the children.
    """
    chunk = keys[first : first + _BUILD_CHUNK]
    before = np.empty_like(chunk)
    before[1:] = chunk[:-1]
    before[0] = keys[first - 1] if first else 0
    increasing = chunk > before
    increasing[0] |= not first
    if not increasing.all():
        raise ConfigError("assume_sorted needs strictly increasing keys; sort them or leave it out")
    changed = np.bitwise_xor(chunk, before, out=before)
    below: NDArray[np.int64] | None = None
    for level in reversed(range(layout.levels)):
        shift, size = np.uint64(layout.shifts[level]), layout.level_sizes[level]
        begins = changed >> shift != 0
        begins[0] |= not first
        # The first level keeps all higher bits, so a key beyond the layout is seen here too.
        column = chunk[begins] >> shift
        if level:
            column &= np.uint64((1 << layout.bits[level]) - 1)
        if column.max(initial=np.uint64(0)) >= size:
            raise ConfigError(f"a key has code {column.max()} at level {level} of {size} codes")
        if below is not None:
            earlier = sum(map(len, codes[level + 1])) - below[-1]
            starts[level].append((below[begins] - 1 + earlier).astype(np.uint32))
        codes[level].append(column.astype(_code_type(size)))
        below = np.cumsum(begins) if level else None


def _code_type(size: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if size <= 256 else np.uint16


def _merge(parts: list[NDArray[Any]], kind: type[Any]) -> NDArray[Any]:
    """One array of the parts, which are given up."""
    merged = np.concatenate(parts) if parts else np.empty(0, dtype=kind)
    parts.clear()
    return merged


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
