"""What the simulated demo shop shows: a plain ranker that reads words, never the ground truth."""

from __future__ import annotations

from collections import Counter

import numpy as np

from index.importers.demo_items import DemoItems, Floats
from index.text import words

ATTRIBUTE_WEIGHT = 0.35  # of a word found in the columns only, next to 1 in the title
POPULARITY_WEIGHT = 0.25
MIN_SHARED_TRIGRAMS = 0.3  # Jaccard similarity from which a misspelt word is understood


class BaselineRanker:
    """What the simulated shop shows: tf·idf of words and attributes, popularity, noise.

    An unknown word is read as the known word that shares most letter trigrams, if enough.
    """

    def __init__(self, items: DemoItems) -> None:
        titles = [
            set(words(f"{row['title']} {row['brand']} {row['category'][-1]}")) for row in items.rows
        ]
        columns = [
            {
                token
                for name in ("color", "material", "audience", "function")
                for value in row[name]
                for token in words(value)
            }
            for row in items.rows
        ]
        postings: dict[str, list[int]] = {}
        strengths: dict[str, list[float]] = {}
        for number, (named, further) in enumerate(zip(titles, columns, strict=True)):
            for token in sorted(named | further):
                postings.setdefault(token, []).append(number)
                strengths.setdefault(token, []).append(1.0 if token in named else ATTRIBUTE_WEIGHT)
        self.n_items = len(items)
        self.postings = {
            token: (
                np.array(rows),
                np.array(strengths[token]) * np.log1p(self.n_items / len(rows)),
            )
            for token, rows in postings.items()
        }
        self.popularity = POPULARITY_WEIGHT * np.log1p(items.popularity)
        self.trigrams: dict[str, list[str]] = {}
        for token in sorted(self.postings):
            for trigram in _trigrams(token):
                self.trigrams.setdefault(trigram, []).append(token)

    def known(self, token: str) -> str | None:
        if token in self.postings:
            return token
        wanted = _trigrams(token)
        shared = Counter(t for trigram in wanted for t in self.trigrams.get(trigram, ()))
        best = max(
            shared.items(),
            key=lambda pair: (pair[1] / (len(wanted | _trigrams(pair[0]))), pair[0]),
            default=None,
        )
        if best is None or best[1] / len(wanted | _trigrams(best[0])) < MIN_SHARED_TRIGRAMS:
            return None
        return best[0]

    def scores(self, query: str) -> Floats:
        """(n_items,) lexical score and popularity, without noise."""
        total = self.popularity.copy()
        for token in words(query):
            known = self.known(token)
            if known is not None:
                rows, strength = self.postings[known]
                total[rows] += strength
        return total


def _trigrams(token: str) -> set[str]:
    padded = f"^{token}$"
    return {padded[i : i + 3] for i in range(len(padded) - 2)}
