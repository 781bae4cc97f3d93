"""Arrays that change while others read them: every reader keeps the state that it was given.

`Tail` grows at its end. `Column` also changes values: a few changed rows lie beside the array, and
are folded into a copy of it now and then. Both have one writer. A thread beside the writer may make
the copy ahead (`Column.fold_ahead`), so that no step of the writer's takes long.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.live.kernels import overwritten

MAX_PATCHED_ROWS = 16_384
MAX_PATCHED_SHARE = 1 / 64
"""More patched rows than either bound are folded into a copy by the writer …"""
AHEAD_SHARE = 1 / 4
"""… and are worth a copy ahead from this share of it on."""
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


class _Ahead(Generic[Scalar]):
    """What was made ahead for a line of states: a copy of the first `n` values of `origin`, with
    all patches of some state that has this buffer."""

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made: tuple[NDArray[Scalar], NDArray[Scalar], int] | None = None
        """Copy, origin, n."""


class Column(Generic[Scalar]):
    """A column of n values. Immutable for its readers; `after` gives the next state.

    `patched`: int64 (p,), ascending, distinct rows whose values are `patch`, not those of `plain`.
    """

    __slots__ = ("_ahead", "_buffer", "_n", "patch", "patched")

    def __init__(
        self,
        buffer: NDArray[Scalar],
        n: int,
        patched: NDArray[np.int64] | None = None,
        patch: NDArray[Scalar] | None = None,
        ahead: _Ahead[Scalar] | None = None,
    ) -> None:
        self._buffer = buffer
        self._n = n
        self._ahead = _Ahead[Scalar]() if ahead is None else ahead
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
        column = self if self._ahead.made is None else self._with_copy()
        return column._written(rows, values, added)

    def fold_ahead(self) -> None:
        """Make the copy that a later state folds its patches into, where it is due. For one thread
        at a time, beside the writer; it holds the interpreter for a moment only."""
        bound = max(MAX_PATCHED_ROWS, int(self._n * MAX_PATCHED_SHARE))
        if self._ahead.made is not None or len(self.patched) <= bound * AHEAD_SHARE:
            return
        buffer = self._copy(self._n)
        buffer[self.patched] = self.patch
        self._ahead.made = buffer, self._buffer, self._n

    def _with_copy(self) -> Column[Scalar]:
        """The same values over the copy made ahead, less what it has of the patches."""
        assert self._ahead.made is not None
        (buffer, origin, known), self._ahead.made = self._ahead.made, None
        if origin is not self._buffer or self._n > len(buffer):
            # Of a state before the last copy: it lacks what was folded there.
            return self
        buffer[known : self._n] = self._buffer[known : self._n]
        # All rows changed since the origin was made are patched: the others are right in the copy.
        value = buffer[self.patched]
        differs = (value != self.patch) & ~((value != value) & (self.patch != self.patch))
        return Column(buffer, self._n, self.patched[differs], self.patch[differs], self._ahead)

    def _copy(self, n: int) -> NDArray[Scalar]:
        """The plain values in a buffer with room behind n values."""
        buffer = np.empty(n + max(n // _SLACK_SHARE, _MIN_CAPACITY), dtype=self._buffer.dtype)
        buffer[: self._n] = self.plain
        return buffer

    def _written(
        self, rows: NDArray[np.int64], values: NDArray[Scalar], added: NDArray[Scalar]
    ) -> Column[Scalar]:
        n = self._n + len(added)
        buffer, patched, patch = self._buffer, self.patched, self.patch
        if len(rows):
            patched, patch = overwritten(patched, patch, rows, values)
        bound = max(MAX_PATCHED_ROWS, int(n * MAX_PATCHED_SHARE))
        if n > len(buffer) or len(patched) > bound:
            buffer = self._copy(n)
            buffer[self._n : n] = added
            buffer[patched] = patch
            return Column(buffer, n, ahead=self._ahead)
        if len(added):
            # Rows from n on are in nobody's sight yet.
            buffer[self._n : n] = added
        return Column(buffer, n, patched, patch, self._ahead)
