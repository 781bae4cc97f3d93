"""Misspellings: an unknown word one edit away from words the catalogue knows.

An edit leaves out, adds, swaps or replaces one letter; an unknown word may also be two known ones
written together. Among several the one wins that is frequent and occurs together with the other
words. Words of fewer than MIN_LETTERS or more than MAX_LETTERS letters, words with digits and
scripts other than Latin stay as they are. Nothing is stored: candidates are made and looked up,
about 50·letters of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from index.lexical import LexicalIndex
from index.text import words
from server.keywords.cues import STOP_WORDS

MIN_LETTERS = 3
MAX_LETTERS = 24
MIN_EDITABLE_LETTERS = 4
"""In a shorter word a letter may be missing or two be swapped, but none is taken away."""
MIN_FREQUENCY = 2
"""A word of fewer items is no safe correction."""
MIN_PART_LETTERS = 3
MIN_PART_FREQUENCY = 5
# Weights of the choice among several, in units of log frequency.
_TOGETHER = 2.0
_SWAP = 2.0
_DOUBLED = 2.0
_VOWEL = 0.5
_FIRST_LETTER = -3.0
_PARTED = -1.0
_FUNCTION_WORD_SHARE = 0.01

_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_WORD = re.compile(rf"(?<![\w'’-])[a-z]{{{MIN_LETTERS},{MAX_LETTERS}}}(?![\w'’])")
# Words a query may have that no title has.
_FUNCTION_WORDS = STOP_WORDS | frozenset(
    ("without", "except", "under", "below", "above", "over", "between", "women", "kids", "cheap")
)


class Spelling:
    """Corrects words by a lexical index. Read-only, safe to share among threads."""

    def __init__(self, lexical: LexicalIndex, known: frozenset[str]) -> None:
        """`known`: further words that are right, e.g. those of the attribute dictionary."""
        self._lexical = lexical
        self._frequency = np.diff(lexical.start)
        self._known = known | _FUNCTION_WORDS
        self._pretended = max(_FUNCTION_WORD_SHARE * lexical.n_items, MIN_FREQUENCY)

    def correct(self, text: str) -> str:
        """A text in normal form with its unknown words corrected where that is possible."""
        unknown = [hit for hit in _WORD.finditer(text) if not self._is_right(hit[0])]
        if not unknown:
            return text
        others = self._rows_of_known(text)
        parts: list[str] = []
        start = 0
        for hit in unknown:
            parts += (text[start : hit.start()], self._best(hit[0], others) or hit[0])
            start = hit.end()
        return "".join((*parts, text[start:]))

    def _is_right(self, word: str) -> bool:
        """Whether a query's word may stay; unlike for candidates, units and plurals are looked
        through."""
        return self._is_known(word) or self._count((words(word) or [""])[0] or word) > 0

    def _is_known(self, word: str) -> bool:
        return word in self._known or self._count(word) > 0

    def _count(self, word: str) -> int:
        token = self._lexical.vocabulary.get(word)
        if token is None and word[-1] == "s":
            (canonical,) = words(word) or [""]
            token = self._lexical.vocabulary.get(canonical)
        return 0 if token is None else int(self._frequency[token])

    def _rows_of_known(self, text: str) -> list[np.ndarray]:
        vocabulary, lexical = self._lexical.vocabulary, self._lexical
        tokens = {vocabulary[word] for word in words(text) if word in vocabulary and word.isalpha()}
        return [lexical.rows[lexical.start[t] : lexical.start[t + 1]] for t in sorted(tokens)]

    def _best(self, word: str, others: Sequence[np.ndarray]) -> str | None:
        best, best_score = None, -math.inf
        for candidate, prior in self._candidates(word):
            count = float(self._count(candidate))
            if candidate in _FUNCTION_WORDS:
                count = max(count, self._pretended)
            elif candidate in self._known:
                count = max(count, MIN_FREQUENCY)
            if count < MIN_FREQUENCY:
                continue
            score = prior + math.log(count) + _TOGETHER * self._together(candidate, others)
            if score > best_score:
                best, best_score = candidate, score
        for left, right in _partings(word):
            count = min(self._count(left), self._count(right))
            if count < MIN_PART_FREQUENCY:
                continue
            score = _PARTED + math.log(count) + _TOGETHER * (self._shared(left, right) - 1.0)
            if score > best_score:
                best, best_score = f"{left} {right}", score
        return best

    def _candidates(self, word: str) -> Iterator[tuple[str, float]]:
        """Known words one edit away and how likely such an edit is."""
        for candidate, prior in _edits(word):
            if self._is_known(candidate):
                yield candidate, prior

    def _together(self, candidate: str, others: Sequence[np.ndarray]) -> float:
        """log(1 + items that have the candidate and one of the other words)."""
        token = self._lexical.vocabulary.get(candidate)
        if token is None and candidate[-1] == "s":
            token = self._lexical.vocabulary.get((words(candidate) or [""])[0])
        if token is None or not others:
            return 0.0
        rows = self._lexical.rows[self._lexical.start[token] : self._lexical.start[token + 1]]
        return math.log1p(max(_common(rows, other) for other in others))

    def _shared(self, left: str, right: str) -> float:
        lexical, vocabulary = self._lexical, self._lexical.vocabulary
        first = vocabulary.get((words(left) or [""])[0])
        second = vocabulary.get((words(right) or [""])[0])
        if first is None or second is None:
            return 0.0
        runs = [lexical.rows[lexical.start[t] : lexical.start[t + 1]] for t in (first, second)]
        return math.log1p(_common(*runs))


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many rows two ascending runs share."""
    small, large = (one, other) if len(one) <= len(other) else (other, one)
    if not len(small):
        return 0
    found = np.minimum(np.searchsorted(large, small), len(large) - 1)
    return int(np.count_nonzero(large[found] == small))


def _edits(word: str) -> Iterator[tuple[str, float]]:
    """Every word one edit away, with the prior of that edit."""
    vowels = "aeiou"
    for i in range(len(word)):
        prior = _FIRST_LETTER if i == 0 else 0.0
        rest = word[i + 1 :]
        doubled = i > 0 and word[i - 1] == word[i]
        if len(word) >= MIN_EDITABLE_LETTERS:
            yield word[:i] + rest, prior + (_DOUBLED if doubled else 0.0)
        if rest and rest[0] != word[i]:
            yield word[:i] + rest[0] + word[i] + rest[1:], prior + _SWAP
        for letter in _ALPHABET if len(word) >= MIN_EDITABLE_LETTERS else "":
            if letter != word[i]:
                vowel = letter in vowels and word[i] in vowels
                yield word[:i] + letter + rest, prior + (_VOWEL if vowel else 0.0)
    for i in range(len(word) + 1):
        prior = _FIRST_LETTER if i == 0 else 0.0
        for letter in _ALPHABET:
            doubled = letter in (word[i - 1 : i], word[i : i + 1])
            yield word[:i] + letter + word[i:], prior + (_DOUBLED if doubled else 0.0)


def _partings(word: str) -> Iterator[tuple[str, str]]:
    for i in range(MIN_PART_LETTERS, len(word) - MIN_PART_LETTERS + 1):
        yield word[:i], word[i:]
