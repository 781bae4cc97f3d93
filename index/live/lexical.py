"""BM25 over a base and the items added to it, with the statistics of the base.

idf and mean length stay the base's, so scores of base items do not move while items are added; a
token that the base does not know has the idf of one that no item has. Added items have their
addends side by side, by item; a token's are found by a scan, for they are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import ConfigError
from index.lexical import LexicalIndex, inverse_frequency
from index.live.arrays import Column, Tail
from index.live.delta import Delta
from index.ranking import best_rows
from index.text import words


class AddedTexts:
    """Texts of added items, for all views of a base: they only grow. One writer."""

    def __init__(self, base: LexicalIndex) -> None:
        assert base.lengths is not None
        self.base = base
        self.vocabulary: dict[str, int] = {}
        """Tokens that the base does not know; they go on counting where its tokens end."""
        self.mean_length = float(base.lengths.mean()) if base.n_items else 0.0
        self.unknown_idf = float(inverse_frequency(base.n_items, np.zeros(1, dtype=np.int64))[0])
        self._tokens = Tail(np.empty(0, dtype=np.int64))
        self._items = Tail(np.empty(0, dtype=np.int64))
        self._impacts = Tail(np.empty(0, dtype=np.float32))
        self.frequencies = Tail(np.empty(0, dtype=np.int64))
        """Occurrences of each addend's token in its item."""
        self.lengths = Tail(np.empty(0, dtype=np.int64))
        """Tokens of each added item."""

    def append(self, delta: Delta) -> None:
        """Take the texts that a delta made for the newest view adds."""
        known = self.vocabulary
        known.update(zip(delta.words, count(len(self.base.idf) + len(known)), strict=False))
        self._tokens.append(delta.tokens)
        self._items.append(delta.token_items)
        self._impacts.append(delta.impacts)
        self.frequencies.append(delta.frequencies)
        self.lengths.append(delta.lengths)

    def addends(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Token number, added item and impact of every addend, items ascending."""
        return self._tokens.values, self._items.values, self._impacts.values


@dataclass(frozen=True, slots=True, eq=False)
class LiveLexical:
    """The lexical index of a view. Immutable; safe to share between threads.

    `tokens`, `items` int64 (P,), `impacts` float32 (P,): addends of added items. `n_tokens`: known
    tokens, base and added. `alive`: None when nothing was deleted.
    """

    base: LexicalIndex
    texts: AddedTexts
    n_added: int
    n_tokens: int
    tokens: NDArray[np.int64]
    items: NDArray[np.int64]
    impacts: NDArray[np.float32]
    alive: Column[np.bool_] | None

    @classmethod
    def of(cls, base: LexicalIndex) -> LiveLexical:
        """A base without changes; it must have `lengths`."""
        texts = AddedTexts(base)
        return cls(base, texts, 0, len(base.idf), *texts.addends(), None)

    @property
    def n_items(self) -> int:
        """Number of rows, deleted ones too."""
        return self.base.n_items + self.n_added

    def with_delta(self, delta: Delta, alive: Column[np.bool_] | None) -> LiveLexical:
        """After a delta made for this state, the newest of its base."""
        if delta.n_added:
            self.texts.append(delta)
        elif alive is self.alive:
            return self
        return LiveLexical(
            self.base,
            self.texts,
            self.n_added + delta.n_added,
            len(self.base.idf) + len(self.texts.vocabulary),
            *self.texts.addends(),
            alive,
        )

    def scores(self, query: str, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Scores of the given items only, float32 (len(rows),)."""
        rows = np.asarray(rows, dtype=np.int64)
        inside = rows < self.base.n_items
        if inside.all():
            return self.base.scores(query, rows)
        scores = np.empty(len(rows), dtype=np.float32)
        scores[inside] = self.base.scores(query, rows[inside])
        scores[~inside] = self._scores_of_added(query, rows[~inside] - self.base.n_items)
        return scores

    def coverage(self, query: str, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """As `LexicalIndex.coverage`. A token that only added items have is near to itself alone
        until it is merged into a base."""
        rows = np.asarray(rows, dtype=np.int64)
        inside = rows < self.base.n_items
        covered = np.empty(len(rows), dtype=np.float32)
        covered[inside] = self.base.coverage(query, rows[inside])
        if not inside.all():
            covered[~inside] = self._cover_added(query, rows[~inside] - self.base.n_items)
        return covered

    def search(
        self, query: str, k: int, mask: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best items that share a token with the query, as `LexicalIndex.search` finds them.

        `mask`: bool (rows,), rows that may be found; deleted ones never are.
        """
        if mask is not None and mask.shape != (self.n_items,):
            raise ConfigError(f"expected a mask of {self.n_items} items, got {mask.shape}")
        base = self.base.score_all(query)
        rows = np.flatnonzero(base)
        scores = base[rows]
        if self.n_added:
            added = self._score_added(query)
            hits = np.flatnonzero(added)
            rows = np.concatenate([rows, hits + self.base.n_items])
            scores = np.concatenate([scores, added[hits]])
        for allowed in (mask, self.alive):
            if allowed is not None:
                kept = allowed[rows]
                rows, scores = rows[kept], scores[kept]
        best = best_rows(scores, k)
        return rows[best], scores[best]

    def rows_with_all(self, tokens: Sequence[str]) -> NDArray[np.int64]:
        """Rows of the living items that have every one of the tokens, ascending, int64 (n,)."""
        rows = self.base.rows_with_all(tokens)
        if self.n_added:
            numbers = self._numbers_of(tokens)
            if numbers and len(numbers) == len(tokens):
                # An item has each of its tokens once among the addends.
                items = self.items[np.isin(self.tokens, numbers)]
                found, count = np.unique(items, return_counts=True)
                added = found[count == len(set(numbers))] + self.base.n_items
                rows = np.concatenate([rows, added])
        return rows if self.alive is None else rows[self.alive[rows]]

    def upper_bound(self, query: str) -> float:
        """Σ idf of the query's tokens: no item can score more. 0 if no token is known."""
        unknown = sum(number >= len(self.base.idf) for number in self._numbers(query))
        return self.base.upper_bound(query) + unknown * self.texts.unknown_idf

    def _score_added(self, query: str) -> NDArray[np.float32]:
        """Scores of all added items, float32 (n_added,)."""
        scores = np.zeros(self.n_added, dtype=np.float32)
        for number in self._numbers(query):
            found = self.tokens == number
            scores[self.items[found]] += self.impacts[found]
        return scores

    def _scores_of_added(self, query: str, added: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of the given added items (counted from 0), float32 (len(added),)."""
        place, addend = self._addends_of(added)
        tokens, impacts = self.tokens[addend], self.impacts[addend]
        scores = np.zeros(len(added), dtype=np.float32)
        for number in self._numbers(query):
            found = tokens == number
            scores[place[found]] += impacts[found]
        return scores

    def _cover_added(self, query: str, added: NDArray[np.int64]) -> NDArray[np.float32]:
        """Coverage of the given added items (counted from 0), float32 (len(added),)."""
        place, addend = self._addends_of(added)
        tokens = self.tokens[addend]
        wanted = list(dict.fromkeys(words(query)))
        weights = [self.base.token_weight(token) for token in wanted]
        covered = np.zeros(len(added), dtype=np.float32)
        for token, weight in zip(wanted, weights, strict=True):
            numbers, similarity = self.base.near(token)
            own = self.texts.vocabulary.get(token, self.n_tokens)
            if own < self.n_tokens:
                numbers = np.append(numbers, own)
                similarity = np.append(similarity, np.float32(1.0))
            if not len(numbers):
                continue
            order = np.argsort(numbers)
            found = order[
                np.minimum(np.searchsorted(numbers, tokens, sorter=order), len(order) - 1)
            ]
            near = np.where(numbers[found] == tokens, similarity[found], np.float32(0.0))
            best = np.zeros(len(added), dtype=np.float32)
            np.maximum.at(best, place, near)
            covered += weight * best
        return covered / np.float32(sum(weights) or 1.0)

    def _addends_of(self, added: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The addends of the given added items: place in `added`, and number of each."""
        first = np.searchsorted(self.items, added)
        counts = np.searchsorted(self.items, added, side="right") - first
        place = np.repeat(np.arange(len(added)), counts)
        offset = first - (np.cumsum(counts) - counts)
        return place, np.arange(len(place)) + offset[place]

    def _numbers(self, query: str) -> list[int]:
        return self._numbers_of(words(query))

    def _numbers_of(self, tokens: Sequence[str]) -> list[int]:
        known, added = self.base.vocabulary, self.texts.vocabulary
        numbers = [known[t] if t in known else added.get(t, -1) for t in tokens]
        return [number for number in numbers if 0 <= number < self.n_tokens]
