"""What a user takes next, without a query: examples that slide a window over users' sequences.

    [user SIDs] <|query|> <|history|> SIDs of the window <|item|>  →  SID of the item after it

Each choice of a sequence but the first is a target once an epoch on average; what is before it is
the history, of which the prompt keeps its newest `max_history` (the window). One example in two has
a shorter window, of a length drawn evenly, so that users of few choices are met in training too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.prompt import PromptBuilder
from models.training.example_set import ExampleSet

SHORTENED_SHARE = 0.5


class NextItems:
    """Draws examples. `sequences`: item rows of each user, oldest first; `codes_of_row` (n, L)."""

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        codes_of_row: NDArray[np.int32],
        prompts: PromptBuilder,
        dimension: int,
    ) -> None:
        self._sequences = [list(rows) for rows in sequences if len(rows) > 1]
        self._targets = np.array([len(rows) - 1 for rows in self._sequences], np.int64)
        self._ends = np.cumsum(self._targets)
        self._codes_of_row = codes_of_row
        self._prompts = prompts
        self._dimension = dimension

    def __len__(self) -> int:
        """Number of targets."""
        return int(self._targets.sum())

    def draw(self, count: int, random: np.random.Generator) -> ExampleSet:
        """`count` examples with one certain target each; there must be a target."""
        window = max(self._prompts.settings.max_history, 1)
        prompts: list[list[int]] = []
        rows: list[int] = []
        for number in random.integers(len(self), size=count).tolist():
            user = int(np.searchsorted(self._ends, number, side="right"))
            place = 1 + number - int(self._ends[user] - self._targets[user])
            past = self._sequences[user][:place]
            if random.random() < SHORTENED_SHARE:
                past = past[-int(random.integers(1, window + 1)) :]
            prompts.append(self._prompts.student((), None, self._codes_of_row[past]).tolist())
            rows.append(self._sequences[user][place])
        codes = self._codes_of_row[rows][:, None]
        return ExampleSet(
            prompts,
            codes,
            np.ones((count, 1), np.float32),
            [()] * count,
            np.zeros((count, self._dimension), np.float32),
        )
