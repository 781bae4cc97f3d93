"""Arrays that change while others read them: every reader keeps the state that it was given.

`Tail` grows at its end. `Column` also changes values, in place: each change leaves behind what it
wrote over, and whoever reads an earlier state puts that back. Readers of the newest state find
nothing to put back, and a change touches nothing but the rows that change: the caches of a search
beside it stay warm. Both have one writer.

What makes this safe without locks is the order. The writer leaves behind what it will write over,
then writes; a reader reads, then looks for what was left behind.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

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


class _Step(Generic[Scalar]):
    """What led from one state to the next: rows, their values before, the step behind; None as
    long as there is no next state."""

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made: tuple[NDArray[np.int64], NDArray[Scalar], _Step[Scalar]] | None = None


_NO_ROWS = np.empty(0, dtype=np.int64)


@cache
def _no_values(kind: np.dtype[Scalar]) -> NDArray[Scalar]:
    return np.empty(0, dtype=kind)


_Behind = tuple[NDArray[np.int64], NDArray[Scalar], _Step[Scalar]]


class Column(Generic[Scalar]):
    """A column of n values. Immutable for its readers; `after` gives the next state."""

    __slots__ = ("_behind", "_buffer", "_is_own", "_n")

    def __init__(self, buffer: NDArray[Scalar], n: int, is_own: bool, step: _Step[Scalar]) -> None:
        self._buffer = buffer
        self._n = n
        self._is_own = is_own
        self._behind: _Behind[Scalar] = (_NO_ROWS, _no_values(buffer.dtype), step)
        """Rows changed since, what they were, and the first step that these do not have yet."""

    @classmethod
    def of(cls, values: NDArray[Scalar]) -> Column[Scalar]:
        """`values` are only read: the first change copies them (see `own`)."""
        return cls(values, len(values), False, _Step())

    def __len__(self) -> int:
        return self._n

    @property
    def newest(self) -> NDArray[Scalar]:
        """The values (n,), where not changed since this state: of what is read here the rows that
        `changed_since` names afterwards are to be put right. Not to be written."""
        values = self._buffer[: self._n]
        values.flags.writeable = False
        return values

    def changed_since(self) -> tuple[NDArray[np.int64], NDArray[Scalar]]:
        """Rows changed after this state, ascending and distinct, and their values in it."""
        rows, values, step = self._behind
        if step.made is not None:
            all_rows, all_values = [rows], [values]
            while step.made is not None:
                rows, values, step = step.made
                all_rows.append(rows)
                all_values.append(values)
            # Of several changes of a row the first wrote over what this state has.
            rows, first = np.unique(np.concatenate(all_rows), return_index=True)
            n_inside = np.searchsorted(rows, self._n)
            rows, values = rows[:n_inside], np.concatenate(all_values)[first[:n_inside]]
            self._behind = rows, values, step
        return rows, values

    def __getitem__(self, rows: NDArray[Any]) -> NDArray[Scalar]:
        """Values of rows, (len(rows),), or of a bool mask (n,)."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        values = self._buffer[rows]
        changed, before = self.changed_since()
        if len(changed):
            place = np.minimum(np.searchsorted(changed, rows), len(changed) - 1)
            values = np.where(changed[place] == rows, before[place], values)
        return values

    def whole(self) -> NDArray[Scalar]:
        """All values, (n,), a copy."""
        values = self._buffer[: self._n].copy()
        rows, before = self.changed_since()
        values[rows] = before
        return values

    def own(self) -> None:
        """Make the copy that the first change would make. Not beside changes."""
        if not self._is_own:
            self._buffer, self._is_own = self._copy(self._n), True

    def after(
        self,
        rows: NDArray[np.int64],
        values: NDArray[Scalar],
        added: NDArray[Scalar],
    ) -> Column[Scalar]:
        """The column with `added` values behind it, then `values` of `rows` changed, which ascend
        and are distinct. Of the newest state only."""
        if not len(rows) and not len(added):
            return self
        n, buffer = self._n + len(added), self._buffer
        changed, _, step = self._behind
        assert step.made is None and not len(changed), "changes go on from the newest state"
        if not self._is_own or n > len(buffer):
            # States so far keep their array, which changes no more.
            buffer, step = self._copy(n), _Step()
            buffer[self._n : n] = added
            buffer[rows] = values
            return Column(buffer, n, True, step)
        if len(added):
            # Rows from n on are in nobody's sight yet.
            buffer[self._n : n] = added
        if len(rows):
            behind = _Step()
            step.made = rows, buffer[rows], behind
            buffer[rows] = values
            step = behind
        return Column(buffer, n, True, step)

    def _copy(self, n: int) -> NDArray[Scalar]:
        """The values in a buffer with room behind n values."""
        buffer = np.empty(n + max(n // _SLACK_SHARE, _MIN_CAPACITY), dtype=self._buffer.dtype)
        buffer[: self._n] = self._buffer[: self._n]
        return buffer
