"""Arrays that change while others read them: every reader keeps the state that it was given.

`Tail` grows at its end. `Column` also changes values: a few changed rows lie beside the array, and
are folded into a copy of it now and then. Both have one writer.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.live.kernels import overwritten

MAX_PATCHED_ROWS = 16_384
_MIN_CAPACITY = 256
_SLACK_SHARE = 8

Scalar = TypeVar("Scalar", bound=np.generic)


class Tail(Generic[Scalar]):
    """An array that grows. What `append` gave stays as it is: later values lie behind it."""

    def __init__(self, values: NDArray[Scalar]) -> None:
        self.values = values
        self._buffer = values

    def append(self, values: NDArray[Any]) -> NDArray[Scalar]:
        """All values so far with these, (n, …); a view of a larger buffer."""
        start, end = len(self.values), len(self.values) + len(values)
        if end > len(self._buffer):
            capacity = max(2 * end, _MIN_CAPACITY)
            self._buffer = np.empty((capacity, *self.values.shape[1:]), self.values.dtype)
            self._buffer[:start] = self.values
        self._buffer[start:end] = values
        self.values = self._buffer[:end]
        return self.values


class Column(Generic[Scalar]):
    """A column of n values. Immutable for its readers; `after` gives the next state.

    `patched`: int64 (p,), ascending, distinct rows whose values are `patch`, not those of `plain`.
    """

    __slots__ = ("_buffer", "_n", "patch", "patched")

    def __init__(
        self,
        buffer: NDArray[Scalar],
        n: int,
        patched: NDArray[np.int64] | None = None,
        patch: NDArray[Scalar] | None = None,
    ) -> None:
        self._buffer = buffer
        self._n = n
        self.patched = np.empty(0, dtype=np.int64) if patched is None else patched
        self.patch = np.empty(0, dtype=buffer.dtype) if patch is None else patch

    @classmethod
    def of(cls, values: NDArray[Scalar]) -> Column[Scalar]:
        return cls(values, len(values))

    def __len__(self) -> int:
        return self._n

    @property
    def plain(self) -> NDArray[Scalar]:
        """The values (n,), patched rows as they were before."""
        return self._buffer[: self._n]

    def __getitem__(self, rows: NDArray[Any]) -> NDArray[Scalar]:
        """Values of rows, (len(rows),), or of a bool mask (n,)."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        values = self._buffer[rows]
        if len(self.patched):
            place = np.minimum(np.searchsorted(self.patched, rows), len(self.patched) - 1)
            hit = self.patched[place] == rows
            values = np.where(hit, self.patch[place], values)
        return values

    def whole(self) -> NDArray[Scalar]:
        """All values, (n,), a copy."""
        values = self.plain.copy()
        values[self.patched] = self.patch
        return values

    def after(
        self,
        rows: NDArray[np.int64],
        values: NDArray[Scalar],
        added: NDArray[Scalar],
    ) -> Column[Scalar]:
        """The column with `added` values behind it, then `values` of `rows` changed, which ascend
        and are distinct."""
        if not len(rows) and not len(added):
            return self
        n = self._n + len(added)
        buffer, patched, patch = self._buffer, self.patched, self.patch
        if len(rows):
            patched, patch = overwritten(patched, patch, rows, values)
        if n > len(buffer) or len(patched) > MAX_PATCHED_ROWS:
            buffer = np.empty(n + max(n // _SLACK_SHARE, _MIN_CAPACITY), dtype=self._buffer.dtype)
            buffer[: self._n] = self.plain
            buffer[self._n : n] = added
            buffer[patched] = patch
            return Column(buffer, n)
        if len(added):
            # Rows from n on are in nobody's sight yet.
            buffer[self._n : n] = added
        return Column(buffer, n, patched, patch)
