"""A trie and the few SIDs that it does not have: what is searched while the catalogue changes.

The base trie stays as it is. Of the SIDs added since, the prefixes that the base does not know
become *added nodes*. On each level the base's nodes keep the numbers 0..n - 1 and added nodes are
n, n + 1, ...; a prefix that the base knows is never added, so no node exists twice. Added leaf i is
leaf `base.n_leaves + i`. Numbers of added nodes hold for one `LiveTrie` only.

An added SID shares its first `depth` levels with the base, `depth` < L; its nodes from that level
on are added ones. With the added SIDs ordered by falling depth, then by key, the added nodes of
level l are the distinct prefixes of those with depth ≤ l, a suffix of that order. Their parents
are numbered in the same order, so each parent's added children are one run.

Node numbers follow SID order among base nodes, and among the added children of one parent; they do
not across the two. Whoever breaks ties by SID order compares parents first, then codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.errors import ConfigError
from index.live.kernels import child_with_code, grown
from index.sid import SidLayout
from index.trie import Nodes, Trie, TrieFilter


@dataclass(frozen=True, slots=True, eq=False)
class AddedNodes:
    """The added nodes of one level l.

    `parents`: int64 (p,), ascending, the nodes of level l - 1 (base or added) that have added
    children; for l = 0 the root, 0, or nothing. `starts`: int64 (p + 1,), the run of each parent in
    `codes`: uint16 (d,), ascending within a run. Node `base count + i` of the level is `codes[i]`.
    """

    parents: Nodes
    starts: Nodes
    codes: NDArray[np.uint16]


class Additions(NamedTuple):
    """New leaves of a trie, by falling depth, then by key: what `LiveTrie` says of a leaf, and
    before which of the added leaves so far each one goes."""

    keys: NDArray[np.uint64]
    depth: Nodes
    node: Nodes
    places: Nodes


class _Shape(NamedTuple):
    """Of a base, by level: where a key has the level's bits, how many, and nodes; int64 (L,)."""

    shifts: Nodes
    bits: Nodes
    counts: Nodes


@dataclass(frozen=True, eq=False)
class LiveTrie:
    """A base trie with added SIDs. Immutable; safe to share between threads.

    `added_keys`: uint64 (n,), `depth`, `base_node` and `ids`: int64 (n,), one per added leaf: the
    packed SID, how many levels of it the base knows, the base's node there (0 for depth 0), and the
    leaf's place in the order in which SIDs were added; `leaf_of_id` the leaf of each. Numbers of
    leaves change as SIDs are added, their ids never. `depth_start` (L + 1,): where the leaves of
    depth L - 1, …, 0 begin, and their end. `parents`, `starts`, `codes` and `table`: the added
    nodes of all levels, as `index.live.kernels.added_nodes` gives them. Use `of` and `extended`;
    they keep the order that the module's head describes.
    """

    base: Trie
    added_keys: NDArray[np.uint64]
    depth: Nodes
    base_node: Nodes
    ids: Nodes
    depth_start: Nodes
    leaf_of_id: Nodes
    parents: Nodes
    starts: Nodes
    codes: NDArray[np.uint16]
    table: NDArray[np.int64]
    node_counts: tuple[int, ...]
    _shape: _Shape

    @classmethod
    def of(cls, base: Trie, keys: NDArray[np.uint64]) -> LiveTrie:
        """`base` with packed SIDs (n,) added; those that it has, or that repeat, count once.

        Raises ConfigError for keys outside the layout.
        """
        layout, counts = base.layout, base.node_counts
        shape = _Shape(*(np.array(part) for part in (layout.shifts, layout.bits, counts)))
        nothing, no_keys = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
        none = Additions(no_keys, nothing, nothing, nothing)
        return cls._grown(base, shape, *none, none).extended(keys)

    @classmethod
    def _grown(
        cls,
        base: Trie,
        shape: _Shape,
        keys: NDArray[np.uint64],
        depth: Nodes,
        base_node: Nodes,
        ids: Nodes,
        new: Additions,
    ) -> LiveTrie:
        found: Any = grown(keys, depth, base_node, ids, *new, *shape)
        node_counts = tuple((shape.counts + found[-1][:, -1]).tolist())
        return cls(base, *found, node_counts=node_counts, _shape=shape)

    def extended(self, keys: NDArray[np.uint64]) -> LiveTrie:
        """This trie with further packed SIDs (n,). O(added SIDs), whatever the size of the base.

        Added leaves are numbered anew. Raises ConfigError for keys outside the layout.
        """
        return self.with_additions(self.additions(keys)[0])

    def additions(self, keys: NDArray[np.uint64]) -> tuple[Additions, Nodes]:
        """What packed SIDs (n,) add, and the SID number (`index.live.postings`) of each, int64.

        Raises ConfigError for keys outside the layout.
        """
        keys = np.asarray(keys, dtype=np.uint64)
        _check_keys(self.layout, keys)
        depth, node = match(self.base, keys)
        found = self._find_added(keys, depth)
        n_base = self.base.n_leaves
        sids = np.where(depth == self.layout.levels, node, n_base)
        sids[found >= 0] += self.ids[found[found >= 0]]
        unknown = np.flatnonzero((depth < self.layout.levels) & (found < 0))
        _, first, which = np.unique(keys[unknown], return_index=True, return_inverse=True)
        new = unknown[first]
        order = np.lexsort((keys[new], -depth[new]))
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        sids[unknown] += len(self.ids) + rank[which]
        new = new[order]
        places = self._places(keys[new], depth[new])
        return Additions(keys[new], depth[new], node[new], places), sids

    def with_additions(self, new: Additions) -> LiveTrie:
        """This trie with further leaves, made for it."""
        if not len(new.keys):
            return self
        own = self.added_keys, self.depth, self.base_node, self.ids
        return LiveTrie._grown(self.base, self._shape, *own, new)

    @property
    def layout(self) -> SidLayout:
        return self.base.layout

    @property
    def n_leaves(self) -> int:
        """Number of legal SIDs, base and added."""
        return self.node_counts[-1]

    @property
    def n_bytes(self) -> int:
        """Bytes of the stored arrays, base and added."""
        own = [self.added_keys, self.depth, self.base_node, self.ids]
        for level in self.added:
            own += [level.parents, level.starts, level.codes]
        return self.base.n_bytes + sum(array.nbytes for array in own)

    @cached_property
    def added(self) -> tuple[AddedNodes, ...]:
        """The added nodes of each level."""
        parts: list[AddedNodes] = []
        for parents_at, n_parents, starts_at, codes_at, n_codes in self.table.tolist():
            parents = self.parents[parents_at : parents_at + n_parents]
            starts = self.starts[starts_at : starts_at + n_parents + 1]
            parts.append(AddedNodes(parents, starts, self.codes[codes_at : codes_at + n_codes]))
        return tuple(parts)

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """The packed SID of each leaf, uint64 (N,): the base's, sorted, then the added ones."""
        return np.concatenate([self.base.keys, self.added_keys])

    def children(self, level: int, nodes: NDArray[np.integer[Any]]) -> tuple[Nodes, Nodes]:
        """First and end of the base children (nodes of `level + 1`), int64; 0, 0 where none."""
        nodes = np.asarray(nodes, dtype=np.int64)
        inside = nodes < self.base.node_counts[level]
        first, end = np.zeros((2, len(nodes)), dtype=np.int64)
        first[inside], end[inside] = self.base.children(level, nodes[inside])
        return first, end

    def added_children(self, level: int, nodes: NDArray[np.integer[Any]]) -> tuple[Nodes, Nodes]:
        """First and end of the added children (nodes of `level + 1`), int64; 0, 0 where none.

        Level -1 is the root, node 0.
        """
        below = self.added[level + 1]
        nodes = np.asarray(nodes, dtype=np.int64)
        if not len(below.parents):
            return np.zeros(len(nodes), dtype=np.int64), np.zeros(len(nodes), dtype=np.int64)
        place = np.minimum(np.searchsorted(below.parents, nodes), len(below.parents) - 1)
        has = below.parents[place] == nodes
        offset = self.base.node_counts[level + 1]
        first, end = below.starts[place] + offset, below.starts[place + 1] + offset
        return np.where(has, first, 0), np.where(has, end, 0)

    def codes_at(self, level: int, nodes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Codes of nodes of a level, int64."""
        nodes = np.asarray(nodes, dtype=np.int64)
        codes, offset = self.base.codes[level], self.base.node_counts[level]
        result = np.empty(len(nodes), dtype=np.int64)
        inside = nodes < offset
        result[inside] = codes[nodes[inside]]
        result[~inside] = self.added[level].codes[nodes[~inside] - offset]
        return result

    def codes_of_leaves(self, leaves: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """Codes of the given leaves, int32 (n, L)."""
        leaves = np.asarray(leaves, dtype=np.int64)
        result = np.empty((len(leaves), self.layout.levels), dtype=np.int32)
        inside = leaves < self.base.n_leaves
        result[inside] = self.base.codes_of_leaves(leaves[inside])
        added = leaves[~inside] - self.base.n_leaves
        result[~inside] = self.layout.unpack(self.added_keys[added])
        return result

    def find(self, keys: NDArray[np.uint64] | Sequence[int]) -> Nodes:
        """Leaf of each key, int64 (n,); -1 where the SID is not legal."""
        keys = np.asarray(keys, dtype=np.uint64)
        depth, node = match(self.base, keys)
        added = self._find_added(keys, depth)
        leaf = np.where(depth == self.layout.levels, node, -1)
        leaf = np.where(added >= 0, added + self.base.n_leaves, leaf)
        return np.where(_is_within(self.layout, keys), leaf, -1)

    def filter(self, leaf_mask: NDArray[np.bool_]) -> TrieFilter:
        """Bits of the nodes, base and added, that lead to an allowed leaf; like `Trie.filter`.

        `leaf_mask`: bool (N,). Raises ConfigError for another length.
        """
        if leaf_mask.shape != (self.n_leaves,) or leaf_mask.dtype != np.bool_:
            raise ConfigError(
                f"expected a bool mask of {self.n_leaves} leaves, "
                f"got {leaf_mask.dtype} {leaf_mask.shape}"
            )
        base = self.base.filter(leaf_mask[: self.base.n_leaves])
        bits = [
            np.concatenate([part, np.zeros(len(level.codes), dtype=np.bool_)])
            for part, level in zip(base.bits[:-1], self.added[:-1], strict=True)
        ]
        bits.append(leaf_mask)
        self.raise_added(bits)
        return TrieFilter(tuple(bits), int(np.count_nonzero(leaf_mask)))

    def raise_added(self, bits: Sequence[NDArray[np.bool_]]) -> None:
        """Set, in place, the bits of all ancestors of added leaves whose own bit is set.

        `bits`: bool (node count,) of each level. The last level is only read.
        """
        raised = np.empty(0, dtype=np.int64)
        for level in range(self.layout.levels - 1, 0, -1):
            nodes, count = self.added[level], self.base.node_counts[level]
            sums = np.zeros(len(nodes.codes) + 1, dtype=np.int64)
            np.cumsum(bits[level][count:], out=sums[1:])
            reached = nodes.parents[sums[nodes.starts[1:]] != sums[nodes.starts[:-1]]]
            if len(raised):
                reached = np.union1d(reached, self.base.parents(level, raised))
            bits[level - 1][reached] = True
            raised = reached[reached < self.base.node_counts[level - 1]]

    def _find_added(self, keys: NDArray[np.uint64], depth: Nodes) -> Nodes:
        """Position of each key, of which the base knows `depth` levels, among the added leaves;
        -1 where it is not there."""
        if not len(self.added_keys):
            return np.full(len(keys), -1, dtype=np.int64)
        place = np.minimum(self._places(keys, depth), len(self.added_keys) - 1)
        return np.where(self.added_keys[place] == keys, place, -1)

    def _places(self, keys: NDArray[np.uint64], depth: Nodes) -> Nodes:
        """Where keys are, or would be inserted, in the order of the added leaves, int64."""
        places = np.zeros(len(keys), dtype=np.int64)
        for value in set(depth.tolist()) - {self.layout.levels}:
            group = self.layout.levels - 1 - value
            first, end = self.depth_start[group], self.depth_start[group + 1]
            chosen = depth == value
            places[chosen] = first + np.searchsorted(self.added_keys[first:end], keys[chosen])
        return places


AnyTrie = Trie | LiveTrie


def match(base: Trie, keys: NDArray[np.uint64]) -> tuple[Nodes, Nodes]:
    """How many levels of each key the trie knows, and its node there (0 for none), int64 (n,)."""
    depth, node = np.zeros((2, len(keys)), dtype=np.int64)
    if not base.n_leaves or not len(keys):
        return depth, node
    wanted = base.layout.unpack(keys)
    active = np.arange(len(keys))
    for level in range(base.layout.levels):
        code = wanted[active, level]
        if level:
            starts = base.starts[level - 1]
            found = child_with_code(
                starts.base, starts.delta, starts.shift, base.codes[level], node[active], code
            )
        else:
            place = np.minimum(np.searchsorted(base.codes[0], code), len(base.codes[0]) - 1)
            found = np.where(base.codes[0][place] == code, place, -1)
        active, found = active[found >= 0], found[found >= 0]
        node[active] = found
        depth[active] = level + 1
        if not len(active):
            break
    return depth, node


def _check_keys(layout: SidLayout, keys: NDArray[np.uint64]) -> None:
    """Raises ConfigError for a key with bits or codes beyond the layout."""
    inside = (layout.unpack(keys) < np.array(layout.level_sizes)).all()
    if not (inside and _is_within(layout, keys).all()):
        raise ConfigError(f"an added key lies outside the layout {layout.level_sizes}")


def _is_within(layout: SidLayout, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which keys have no bit beyond the layout's."""
    used = sum(layout.bits)
    return np.ones(len(keys), dtype=np.bool_) if used == 64 else keys >> np.uint64(used) == 0
