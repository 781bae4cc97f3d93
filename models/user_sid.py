"""User SIDs: what a user chose, condensed into two codes a level (METHOD §2).

With the SIDs s_1 … s_n of a sequence, oldest first, and level l:

    λ_i = exp(√i) / Σ_t exp(√t)            code_l = ⌈ Σ_i λ_i · s_i,l ⌉

over the short sequence (the newest SHORT_WINDOW) and over the long one (the newest LONG_WINDOW),
concatenated. A weighted mean of codes is a code again, because it is no larger than the largest.
A user without a sequence is given the one of `cold` (the query's most clicked items), where the
caller has it; without either there is no user SID.

Prompts of training and of serving get theirs here, through `models.prompt.PromptBuilder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CodeRows = Sequence[NDArray[np.integer[Any]]] | NDArray[np.integer[Any]]
SHORT_WINDOW = 5
LONG_WINDOW = 1000
# Sums of weights that are 1 only up to rounding must not be lifted to the next code.
_ROUNDING_DIGITS = 9


def sequence_sid(codes: CodeRows) -> NDArray[np.int32]:
    """The SID int32 (L,) of a sequence of SIDs (n, L), oldest first; n ≥ 1."""
    table = np.asarray(codes, np.float64)
    assert table.ndim == 2 and len(table), table.shape
    place = np.sqrt(np.arange(1, len(table) + 1))
    weights = np.exp(place - place[-1])
    mean = weights @ table / weights.sum()
    return np.ceil(np.round(mean, _ROUNDING_DIGITS)).astype(np.int32)


def user_sids(codes: CodeRows, cold: CodeRows = ()) -> NDArray[np.int32]:
    """Short and long SID of a user, int32 (2, L), from what they chose, SIDs (n, L) oldest first;
    of `cold` where that is empty; (0, 0) where both are."""
    known = codes if len(codes) else cold
    if not len(known):
        return np.zeros((0, 0), np.int32)
    return np.stack([sequence_sid(known[-SHORT_WINDOW:]), sequence_sid(known[-LONG_WINDOW:])])
