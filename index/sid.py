"""Semantic IDs: tuples of codes, packed into 64-bit keys, written as text.

A SID has one code per level. The first level takes the most significant bits of a key, so sorted
keys are SIDs in lexicographic order. Text form: "<a_12><b_3><c_0>", one letter per level.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from index.errors import ConfigError

MAX_LEVEL_SIZE = 1 << 16
MAX_BITS = 64
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CODE = re.compile(r"<([a-z])_(\d{1,5})>")


@dataclass(frozen=True, slots=True)
class SidLayout:
    """The number of codes of each level. Raises ConfigError where the sizes cannot make a key."""

    level_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.level_sizes) <= len(_LETTERS):
            raise ConfigError(
                f"a SID layout has 1 to {len(_LETTERS)} levels, got {len(self.level_sizes)}"
            )
        for level, size in enumerate(self.level_sizes):
            if not 1 <= size <= MAX_LEVEL_SIZE:
                raise ConfigError(
                    f"level {level} of the SID layout has {size} codes, "
                    f"it must have 1 to {MAX_LEVEL_SIZE}"
                )
        if sum(self.bits) > MAX_BITS:
            raise ConfigError(
                f"level sizes {self.level_sizes} need {sum(self.bits)} bits, a key has {MAX_BITS}; "
                "take fewer or smaller levels"
            )

    @property
    def levels(self) -> int:
        """L, the number of codes of a SID."""
        return len(self.level_sizes)

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of a key that each level takes, at least one."""
        return tuple(max(1, (size - 1).bit_length()) for size in self.level_sizes)

    @property
    def shifts(self) -> tuple[int, ...]:
        """Position of each level's lowest bit in a key."""
        return tuple(accumulate(reversed(self.bits[1:]), initial=0))[::-1]

    def pack(self, codes: NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
        """Codes, shape (N, L), any integer type → keys, uint64 (N,).

        Raises ConfigError for another shape or a code outside its level.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.levels:
            raise ConfigError(f"expected codes of shape (N, {self.levels}), got {codes.shape}")
        if not np.issubdtype(codes.dtype, np.integer):
            raise ConfigError(f"expected integer codes, got {codes.dtype}")
        keys = np.zeros(len(codes), dtype=np.uint64)
        for level, (size, shift) in enumerate(zip(self.level_sizes, self.shifts, strict=True)):
            column = codes[:, level]
            if len(column) and (column.min() < 0 or column.max() >= size):
                row = int(np.flatnonzero((column < 0) | (column >= size))[0])
                raise ConfigError(
                    f"row {row} has code {column[row]} at level {level}, which has {size} codes"
                )
            keys |= column.astype(np.uint64) << np.uint64(shift)
        return keys

    def unpack(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Keys, uint64 (N,) → codes, int32 (N, L). The inverse of `pack`."""
        keys = np.asarray(keys, dtype=np.uint64)
        codes = np.empty((len(keys), self.levels), dtype=np.int32)
        for level, (bits, shift) in enumerate(zip(self.bits, self.shifts, strict=True)):
            mask = np.uint64((1 << bits) - 1)
            codes[:, level] = (keys >> np.uint64(shift)) & mask
        return codes

    def format(self, codes: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text form of one SID, or of its first levels."""
        if len(codes) > self.levels:
            raise ConfigError(f"{len(codes)} codes for a layout of {self.levels} levels")
        return "".join(
            f"<{letter}_{int(code)}>" for letter, code in zip(_LETTERS, codes, strict=False)
        )

    def parse(self, text: str) -> tuple[int, ...]:
        """The codes of a whole SID in text form. Raises ConfigError for anything else."""
        found = _CODE.findall(text)
        codes = tuple(int(code) for _, code in found)
        in_range = all(
            code < size for code, size in zip(codes, self.level_sizes, strict=False)
        ) and len(codes) == len(self.level_sizes)
        if not in_range or self.format(codes) != text:
            largest = self.format([size - 1 for size in self.level_sizes])
            raise ConfigError(f"{text[:200]!r} is no SID of this layout (largest: {largest})")
        return codes

    def to_json(self) -> dict[str, Any]:
        return {"level_sizes": list(self.level_sizes)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SidLayout:
        sizes = data.get("level_sizes")
        if not isinstance(sizes, list):
            raise ConfigError("a SID layout needs level_sizes, a list of integers")
        return cls(tuple(int(size) for size in cast(list[int], sizes)))
