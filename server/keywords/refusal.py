"""What must not be shown, as a test: of terms, of concepts, of items.

A term is refused if it contains the words of a refused value, in order and side by side, in any of
the spellings that `index.text.words` makes equal ("wools" contains "wool"), or if it means one.
"Sugar-free" does not contain sugar.

A refused thing that names a category takes the other things of that category with it: whoever wants
no supplements does not want vitamin capsules either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.attribute_types import AttributeType
from index.text import words
from server.keywords.vocabulary import Vocabulary

# A concept belongs to a category if this share of its items are there …
MIN_BELONGING = 0.8
# … and a refused thing is the category's name if this share of the category's items have it.
MIN_NAMING = 0.5
_FREE = "free"


class Refusal:
    """The refused values of one query."""

    def __init__(self, excluded: Sequence[str], vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._phrases = [tuple(found) for value in excluded if (found := words(value))]
        self._values = frozenset(excluded)
        found = [vocabulary.numbers_of_value(value) for value in excluded]
        self.numbers = frozenset(number for numbers in found for number in numbers)
        self._paths = frozenset(
            path for number in self.numbers for path in _named_paths(number, vocabulary)
        )

    def __bool__(self) -> bool:
        return bool(self._values)

    def has_term(self, term: str) -> bool:
        """Whether a term says something refused."""
        if not self._values:
            return False
        if term in self._values or self._contains(tuple(words(term))):
            return True
        return any(match.value in self._values for match in self._vocabulary.matcher.match(term))

    def has_concept(self, number: int) -> bool:
        """Whether a concept is refused, by its value or by the category it belongs to."""
        if not self._values:
            return False
        concept = self._vocabulary.concepts[number]
        if number in self.numbers or self.has_term(concept.value):
            return True
        if concept.type is not AttributeType.ENTITY:
            return False
        paths, counts = _paths_of(number, self._vocabulary)
        inside = counts[[int(path) in self._paths for path in paths]].sum() if len(paths) else 0
        return bool(inside and inside >= MIN_BELONGING * counts.sum())

    def allowed(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which items have nothing refused, bool (len(rows),)."""
        allowed = np.ones(len(rows), np.bool_)
        if not self._values:
            return allowed
        if self._paths:
            allowed &= ~np.isin(self._vocabulary.path_of[rows], list(self._paths))
        if self.numbers:
            position, concepts = self._vocabulary.items.gather(rows)
            allowed[position[np.isin(concepts, list(self.numbers))]] = False
        for phrase in self._phrases:
            having = self._with_words(rows, phrase)
            if self._vocabulary.neighbours(phrase[-1], _FREE):
                having &= ~self._with_words(rows, (_FREE,))
            allowed &= ~having
        return allowed

    def _with_words(self, rows: NDArray[np.int64], phrase: Sequence[str]) -> NDArray[np.bool_]:
        """Which items have all words in their texts."""
        lexical = self._vocabulary.lexical
        having = np.ones(len(rows), np.bool_)
        for word in phrase:
            number = lexical.vocabulary.get(word)
            if number is None:
                return np.zeros(len(rows), np.bool_)
            run = lexical.rows[lexical.start[number] : lexical.start[number + 1]]
            having &= np.isin(rows, run)
        return having

    def _contains(self, term: tuple[str, ...]) -> bool:
        for phrase in self._phrases:
            for i in range(len(term) - len(phrase) + 1):
                end = i + len(phrase)
                if term[i:end] == phrase and term[end : end + 1] != (_FREE,):
                    return True
        return False


def _paths_of(number: int, vocabulary: Vocabulary) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    run = slice(vocabulary.concept_paths.start[number], vocabulary.concept_paths.start[number + 1])
    return vocabulary.concept_paths.values[run], vocabulary.concept_path_counts[run]


def _named_paths(number: int, vocabulary: Vocabulary) -> list[int]:
    if vocabulary.concepts[number].type is not AttributeType.ENTITY:
        return []
    paths, counts = _paths_of(number, vocabulary)
    return [
        int(path)
        for path, count in zip(paths, counts, strict=True)
        if count >= MIN_NAMING * vocabulary.path_counts[path]
    ]
