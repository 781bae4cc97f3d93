"""What a user's history adds to the served ranking; gateway and evaluation share the arithmetic.

A checkpoint whose `rescoring` has an entry "personal" (`models.training.personal_weights`) ranks
the candidates of a search with a history by those weights plus taste (`index.taste`); a search
without a history is ranked as ever.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from index.rescoring import RescoringWeights
from index.snapshot import Snapshot
from index.taste import PersonalWeights, TasteTable, Vectors

PERSONAL = "personal"


class View(Protocol):
    """A catalogue as it is searched: its base snapshot and its vectors."""

    @property
    def base(self) -> Snapshot: ...

    @property
    def dense(self) -> Vectors: ...


class Bonus(NamedTuple):
    """Weights to rank with, and what taste adds to each row, float32 (n,) or None."""

    weights: RescoringWeights
    taste: NDArray[np.float32] | None


class PersonalRanking:
    """Weights for users with a history, and the taste table of the snapshot at hand.

    Rows are the base snapshot's; a merge of changes brings another base, whose table is made when
    it is first searched. Safe to share between threads.
    """

    def __init__(self, weights: PersonalWeights, base: Snapshot) -> None:
        self.weights = weights
        self._vector = weights.taste.vector()
        self._lock = Lock()
        self._version = base.version
        self._table = TasteTable.of(base.items.table)

    @classmethod
    def of(cls, rescoring: dict[str, Any], base: Snapshot) -> PersonalRanking | None:
        """From a checkpoint's rescoring settings; None where it has no personal weights.

        Raises ConfigError when a weight is missing or no number.
        """
        data = rescoring.get(PERSONAL)
        return cls(PersonalWeights.from_json(data), base) if data else None

    def bonus(self, history: NDArray[np.int64], rows: NDArray[np.int64], view: View) -> Bonus:
        """For candidate rows (n,) of a user who chose `history` (rows, oldest first)."""
        found = self._of(view.base).features(history, rows, view.dense)
        return Bonus(self.weights.rescoring, found @ self._vector)

    def _of(self, base: Snapshot) -> TasteTable:
        with self._lock:
            if base.version != self._version:
                self._table, self._version = TasteTable.of(base.items.table), base.version
            return self._table


def bonus_of(
    personal: PersonalRanking | None,
    weights: RescoringWeights,
    history: NDArray[np.int64],
    rows: NDArray[np.int64],
    view: View,
) -> Bonus:
    """The personal bonus where there are personal weights and a history, else `weights` alone."""
    if personal is None or len(history) == 0:
        return Bonus(weights, None)
    return personal.bonus(history, rows, view)
