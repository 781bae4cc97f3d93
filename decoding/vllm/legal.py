"""The trie as tensors on the model's device: which codes continue a prefix, for many rows at once.

All nodes are numbered breadth first, the root 0, as they lie in the trie's arrays level by level.
So the children of node i are the nodes [first[i], first[i + 1]), whatever its level, and codes[i]
is the code of node i + 1. A prefix's node is found by one search in its level's sorted prefixes.
Nothing is padded to the catalogue's size; no operation waits for the device.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.trie import Trie


class DeviceTrie:
    """A trie's arrays on a device. Immutable.

    Holds one or two bytes of code per node, four or eight bytes of first child per node that is no
    leaf, and eight bytes of prefix.
    """

    def __init__(self, trie: Trie, device: torch.device) -> None:
        self.layout = trie.layout
        counts = [1, *trie.node_counts]
        self._first_of_level = np.cumsum([0, *counts[:-1]]).tolist()
        codes = np.concatenate(trie.codes) if trie.n_leaves else np.zeros(1, dtype=np.uint8)
        # Tensors of uint16 have few operations: the bits are kept, their sign is masked off.
        self._wide = codes.dtype != np.uint8
        self._codes = torch.from_numpy(codes.view(np.int16) if self._wide else codes).to(device)
        self._first = torch.from_numpy(_first_children(trie)).to(device)
        self._prefixes = tuple(
            torch.from_numpy(prefixes).to(device) for prefixes in _prefixes(trie)
        )
        self._widest = _widest(trie)
        self._arange = torch.arange(max(self._widest, default=1), device=device)

    def legal(self, level: int, codes: Tensor, out: Tensor) -> None:
        """Which codes of `level` continue prefixes: `codes` int64 (rows, ≥ level) → `out` bool
        (rows, K_level), written. All false where no SID has the prefix."""
        rows, size = out.shape
        out.zero_()
        if not self._widest[level]:
            return
        node, known = self._nodes(level, codes)
        first, end = self._first[node], self._first[node + 1]
        child = first[:, None] + self._arange[: self._widest[level]]
        inside = (child < end[:, None]) & known[:, None]
        code = self._codes[(child - 1).clamp_(max=len(self._codes) - 1)].to(torch.int64)
        if self._wide:
            code &= 0xFFFF
        # Places beyond a node's children repeat its first child; a row without any is cleared.
        code = torch.where(inside, code, code[:, :1]).clamp_(max=size - 1)
        out.scatter_(1, code, inside[:, :1].expand(rows, code.shape[1]))

    def _nodes(self, level: int, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes of prefixes of `level` codes, and whether there are such."""
        if not level:
            node = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
            return node, torch.ones_like(node, dtype=torch.bool)
        packed = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        for known in range(level):
            packed = (packed << self.layout.bits[known]) | codes[:, known]
        table = self._prefixes[level - 1]
        place = torch.searchsorted(table, packed).clamp_(max=len(table) - 1)
        return place + self._first_of_level[level], table[place] == packed


def _first_children(trie: Trie) -> NDArray[np.int32] | NDArray[np.int64]:
    """First child of each node that is no leaf, breadth first, and the end of the last one's."""
    parts = [np.zeros(1, dtype=np.int64) + 1]
    base = 1 + trie.node_counts[0]
    for starts, count in zip(trie.starts, trie.node_counts[1:], strict=True):
        parts.append(starts.plain()[:-1].astype(np.int64) + base)
        base += count
    parts.append(np.array([base], dtype=np.int64))
    first = np.concatenate(parts)
    return first.astype(np.int32) if base <= np.iinfo(np.int32).max else first


def _prefixes(trie: Trie) -> list[NDArray[np.int64]]:
    """For each level but the last the sorted prefixes of its nodes, packed without gaps below."""
    packed = np.zeros(1, dtype=np.int64)
    result: list[NDArray[np.int64]] = []
    for level in range(trie.layout.levels - 1):
        if level:
            packed = np.repeat(packed, np.diff(trie.starts[level - 1].plain()))
        else:
            packed = np.repeat(packed, trie.node_counts[0])
        packed = (packed << trie.layout.bits[level]) | trie.codes[level].astype(np.int64)
        result.append(packed)
    return result


def _widest(trie: Trie) -> list[int]:
    """The largest number of children by which a prefix is continued at each level."""
    below = [int(np.diff(starts.plain()).max(initial=0)) for starts in trie.starts]
    return [trie.node_counts[0], *below]
