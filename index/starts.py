"""Increasing offsets in compact form: where the children of each node of a trie's level start.

Offsets grow with the position, so they are kept as one uint32 per block of positions and one
uint16 per position:

    start(i) = base[i >> shift] + delta[i]

A sequence takes the largest blocks (64 positions at most) whose differences fit; one with enormous
steps falls back to blocks of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

BLOCK_SHIFTS = (6, 4, 2, 0)
_LARGEST_DELTA = np.iinfo(np.uint16).max
_WORD_BITS = 64

Nodes = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Starts:
    """A strictly increasing sequence of n + 1 offsets, 0 first; see the module's head."""

    base: NDArray[np.uint32]
    delta: NDArray[np.uint16]
    shift: int

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
        return _positions(self.base, self.delta, self.shift, np.ascontiguousarray(values))

    def any_set(self, words: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
        """Whether any bit of each run [start(i), start(i + 1)) is set, bool (n,); and the same as
        words. `words`: the bits, as of `packed_words`."""
        length = len(self.delta) - 1
        # Zeroed memory is the system's own until it is written, so few set bits touch few pages.
        bits = np.zeros(length, dtype=np.bool_)
        own_words = np.zeros(_word_count(length), dtype=np.uint64)
        _any_set(self.base, self.delta, self.shift, words, bits, own_words)
        return bits, own_words


class StartsBuilder:
    """Compact starts from offsets that become known in order; never holds them plain.

    `length`: how many offsets there will be. `append` them, then `finish`.
    """

    def __init__(self, length: int) -> None:
        self._delta = np.empty(length, dtype=np.uint16)
        self._filled = 0
        self._level = 0
        self._base = self._empty_base()

    @property
    def _shift(self) -> int:
        return BLOCK_SHIFTS[self._level]

    def append(self, starts: NDArray[np.uint32]) -> None:
        """The next offsets, uint32 (m,), strictly increasing."""
        end = self._filled + len(starts)
        assert end <= len(self._delta)
        positions = np.arange(self._filled, end)
        while True:
            block = 1 << self._shift
            # Offsets before the first new block belong to one that has begun already.
            new = starts[-self._filled % block :: block]
            first = -(-self._filled // block)
            self._base[first : first + len(new)] = new
            difference = starts - self._base[positions >> self._shift]
            if difference.max(initial=0) <= _LARGEST_DELTA:
                break
            self._take_smaller_blocks()
        self._delta[self._filled : end] = difference
        self._filled = end

    def finish(self) -> Starts:
        """The starts; their arrays are read-only, since threads share them."""
        assert self._filled == len(self._delta)
        self._base.flags.writeable = False
        self._delta.flags.writeable = False
        return Starts(self._base, self._delta, self._shift)

    def _empty_base(self) -> NDArray[np.uint32]:
        return np.empty(-(-len(self._delta) >> self._shift), dtype=np.uint32)

    def _take_smaller_blocks(self) -> None:
        """Divide the blocks; the offsets so far stay what they are."""
        coarse, coarse_shift = self._base, self._shift
        self._level += 1  # Blocks of one always fit, so there is a next shift.
        self._base = self._empty_base()
        block, known = 1 << self._shift, self._delta[: self._filled]
        first = known[::block].copy()
        at = np.arange(len(first)) << self._shift >> coarse_shift
        self._base[: len(first)] = coarse[at] + first
        known -= np.repeat(first, block)[: len(known)]


def packed_words(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Bits as words, bit i in word i / 64 from the lowest; a word of zeros follows them."""
    words = np.zeros(_word_count(len(bits)), dtype="<u8")
    packed = np.packbits(bits, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return words.astype(np.uint64, copy=False)


def _word_count(length: int) -> int:
    """Words of so many bits and one more, since a run of bits is read from two words at once."""
    return -(-length // _WORD_BITS) + 1


def _read_only(kind: Any) -> Any:
    """What takes arrays of either kind."""
    return types.Array(kind, 1, "C", readonly=True)


@njit(inline="always")
def last_at_most(values: NDArray[Any], first: Any, end: Any, wanted: Any) -> Any:
    """The last place in [first, end) whose value is not above the wanted one, `first` for none;
    values ascend. For compiled callers."""
    while end - first > 1:
        middle = (first + end) >> 1
        if values[middle] <= wanted:
            first = middle
        else:
            end = middle
    return first


# With a signature, so that no search is the first one and waits for the compiler.
@njit(
    types.int64[::1](
        *(_read_only(types.uint32), _read_only(types.uint16), types.int64),
        _read_only(types.int64),
    ),
    cache=True,
    nogil=True,
)
def _positions(
    base: NDArray[np.uint32], delta: NDArray[np.uint16], shift: int, values: Nodes
) -> Nodes:
    """`Starts.position_of`."""
    found = np.empty(len(values), dtype=np.int64)
    for place in range(len(values)):
        value = values[place]
        block = last_at_most(base, 0, len(base), value)
        first = block << shift
        end = min(first + (1 << shift), len(delta))
        found[place] = last_at_most(delta, first, end, value - np.int64(base[block]))
    return found


@njit(cache=True, nogil=True)
def _any_set(
    base: NDArray[np.uint32],
    delta: NDArray[np.uint16],
    shift: int,
    words: NDArray[np.uint64],
    bits: NDArray[np.bool_],
    own_words: NDArray[np.uint64],
) -> None:
    """`Starts.any_set`; `bits` and `own_words` come as zeros and are written.

    Runs are taken 64 at a time: where all their words are zero, nothing more is read.
    """
    one, six, last_bit = np.uint64(1), np.uint64(6), np.uint64(63)
    count = len(bits)
    for group in range((count + 63) >> 6):
        node = group << 6
        group_end = min(node + 64, count)
        first = np.uint64(base[node >> shift])
        end = np.uint64(base[group_end >> shift]) + np.uint64(delta[group_end])
        some = np.uint64(0)
        for place in range(first >> six, ((end - one) >> six) + one):
            some |= words[place]
            if some:
                break
        if not some:
            continue
        own = np.uint64(0)
        for bit in range(group_end - node):
            end = np.uint64(base[(node + 1) >> shift]) + np.uint64(delta[node + 1])
            length = end - first
            place, offset = first >> six, first & last_bit
            window = words[place] >> offset
            window |= (words[place + one] << one) << (last_bit - offset)
            if length < np.uint64(64):
                found = window & ((one << length) - one) != 0
            else:
                found = window != 0
                # The rest by whole words: those within the run, then the part of the last.
                place += one
                while not found and place < end >> six:
                    found = words[place] != 0
                    place += one
                if not found:
                    rest = (one << (end & last_bit)) - one
                    found = words[end >> six] & rest != 0
            bits[node] = found
            own |= np.uint64(found) << np.uint64(bit)
            first = end
            node += 1
        own_words[group] = own
