"""A compact set of texts: 64-bit hashes in one array.

Ten million ids take 128 MiB where a Python set of strings takes over a gigabyte. Membership may
err: with n texts the chance that any two collide is about n² / 2⁶⁵ (3·10⁻⁶ for ten million).
"""

from __future__ import annotations

import hashlib
from array import array

_FIRST_BITS = 12
_MAX_LOAD = 0.66
_EMPTY = 0


class IdSet:
    """Open addressing with linear probing; grows by doubling."""

    def __init__(self) -> None:
        self._count = 0
        self._slots = _empty_slots(_FIRST_BITS)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, text: str) -> bool:
        slots = self._slots
        return slots[_slot(slots, hash_of(text))] != _EMPTY

    def add(self, text: str) -> bool:
        """Add a text; False if it was there already."""
        key = hash_of(text)
        position = _slot(self._slots, key)
        if self._slots[position] != _EMPTY:
            return False
        self._slots[position] = key
        self._count += 1
        if self._count > _MAX_LOAD * len(self._slots):
            self._grow()
        return True

    def _grow(self) -> None:
        larger = _empty_slots(len(self._slots).bit_length())
        for key in self._slots:
            if key != _EMPTY:
                larger[_slot(larger, key)] = key
        self._slots = larger


def hash_of(text: str) -> int:
    """64-bit hash of a text, never 0 and the same in every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _empty_slots(bits: int) -> array[int]:
    return array("Q", bytes(8 << bits))


def _slot(slots: array[int], key: int) -> int:
    """Where `key` is or would be."""
    mask = len(slots) - 1
    position = key & mask
    while slots[position] not in (_EMPTY, key):
        position = (position + 1) & mask
    return position
