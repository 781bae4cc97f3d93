"""Filters on the device: one bit per node and level, kept as long as the filter is."""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor

from decoding.cuda.expand import bitmap
from index.trie import TrieFilter


class DeviceFilters:
    """Bitmaps of filters in use. Methods may be called from any thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._bitmaps: dict[int, tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self._bitmaps)

    def bitmaps(self, filter: TrieFilter) -> tuple[Tensor, ...]:
        """Per level int32 (⌈n / 32⌉,): bit i % 32 of word i // 32 is node i's.

        They live as long as the filter's own arrays; a wave holds them while it runs.
        """
        # A filter has no room for a weak reference; its largest array has.
        leaves = filter.bits[-1]
        key = id(leaves)
        with self._lock:
            if key not in self._bitmaps:
                self._bitmaps[key] = tuple(bitmap(bits, self._device) for bits in filter.bits)
                weakref.finalize(leaves, self._bitmaps.pop, key, None)
            return self._bitmaps[key]
