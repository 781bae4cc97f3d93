"""How likely a query is for an item's title, by word translations counted on training pairs.

    P(w | t)  = (pairs with w in the query and t in the title) / (pairs with t in the title + s)
    QL(q, i)  = mean over the words w of q of  log( mean over the title's words t of P(w | t) + ε )

Pairs are the training split's relevant ones. It knows which words people type for what titles say,
in numbers that neither word matching nor a sum of word vectors has. Source: translation language
models for retrieval (Berger, Lafferty 1999).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from index.text import words

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
SMOOTHING = 10.0
FLOOR = 1e-4
MAX_TITLE_WORDS = 32


class QueryLikelihood:
    """Tables of one catalogue; build with `fit`. Not for use by several threads at once."""

    def __init__(
        self, title_words: IntArray, given: dict[str, tuple[IntArray, FloatArray]]
    ) -> None:
        """`title_words` int64 (n, W): distinct words of each title, 0 for none; `given`: query
        word → (title words, P(query word | title word))."""
        self._title_words = title_words
        self._lengths = np.maximum((title_words > 0).sum(axis=1), 1).astype(np.float32)
        self._given = given
        self._table = np.zeros(int(title_words.max(initial=0)) + 1, np.float32)

    @classmethod
    def fit(
        cls, titles: Sequence[Sequence[str]], pairs: Iterable[tuple[Sequence[str], int]]
    ) -> QueryLikelihood:
        """From (query words, item row) of relevant training pairs."""
        number: dict[str, int] = {}
        rows = np.zeros((len(titles), MAX_TITLE_WORDS), np.int64)
        for row, title in enumerate(titles):
            distinct = list(dict.fromkeys(title))[:MAX_TITLE_WORDS]
            rows[row, : len(distinct)] = [number.setdefault(w, len(number) + 1) for w in distinct]
        seen: Counter[int] = Counter()
        together: dict[str, Counter[int]] = defaultdict(Counter)
        for query, row in pairs:
            title = rows[row][rows[row] > 0].tolist()
            seen.update(title)
            for word in set(query):
                together[word].update(title)
        given: dict[str, tuple[IntArray, FloatArray]] = {}
        for word, counts in together.items():
            found = np.array(list(counts), np.int64)
            share = [count / (seen[t] + SMOOTHING) for t, count in counts.items()]
            given[word] = found, np.array(share, np.float32)
        return cls(rows, given)

    def scores(self, query: str, rows: IntArray) -> FloatArray:
        """QL of item rows (n,), float32 (n,); 0 for a query without words."""
        asked = words(query)
        total = np.zeros(len(rows), np.float32)
        of_rows, lengths = self._title_words[rows], self._lengths[rows]
        for word in asked:
            if (entry := self._given.get(word)) is None:
                total += np.float32(np.log(FLOOR))
                continue
            found, share = entry
            self._table[found] = share
            total += np.log(self._table[of_rows].sum(axis=1) / lengths + FLOOR)
            self._table[found] = 0
        return total / np.float32(max(len(asked), 1))
