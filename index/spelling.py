"""Which words of a vocabulary are spelled like a word: morphology, compounds and slips.

    similarity(a, b) = 2·|G(a) ∩ G(b)| / (|G(a)| + |G(b)|),   G(w) = the trigrams of "^w$"

(Dice's coefficient). Words with a digit are near to themselves only: 100 is not nearly 1000. The
trigrams of all words are one sorted array, so a look-up gathers a few runs of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MIN_SIMILARITY = 0.5
MAX_REMEMBERED = 1 << 14
_CODE_BITS = 21
"""Enough for every code point; three of them fit 63 bits."""
_EDGE_START, _EDGE_END = "^", "$"
_Near = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Spellings:
    """The vocabulary's trigrams. Safe to share between threads.

    `grams` uint64 (G,), ascending; gram g is in words[start[g]:start[g + 1]]; `sizes` int32 (W,):
    distinct trigrams of each word, 0 for a word with a digit.
    """

    grams: NDArray[np.uint64]
    start: NDArray[np.int64]
    words: NDArray[np.int32]
    sizes: NDArray[np.int32]
    _remembered: dict[str, _Near] = field(default_factory=dict[str, _Near])

    @classmethod
    def of(cls, vocabulary: Sequence[str]) -> Spellings:
        """Index words; a word's number is its place."""
        spelled = [word if _has_letters_only(word) else "" for word in vocabulary]
        grams, owner = _trigrams(spelled)
        order = np.lexsort((owner, grams))
        grams, owner = grams[order], owner[order]
        first = np.ones(len(grams), bool)
        first[1:] = (grams[1:] != grams[:-1]) | (owner[1:] != owner[:-1])
        grams, owner = grams[first], owner[first]
        distinct, start = np.unique(grams, return_index=True)
        sizes = np.bincount(owner, minlength=len(spelled)).astype(np.int32)
        return cls(distinct, np.append(start, len(grams)), owner.astype(np.int32), sizes)

    def near(self, word: str) -> _Near:
        """Numbers of the words at least MIN_SIMILARITY similar, int64, and how similar, float32."""
        found = self._remembered.get(word)
        if found is None:
            found = self._find(word)
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[word] = found
        return found

    def _find(self, word: str) -> _Near:
        if not _has_letters_only(word) or not len(self.grams):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        wanted = np.unique(_trigrams([word])[0])
        place = np.minimum(np.searchsorted(self.grams, wanted), len(self.grams) - 1)
        place = place[self.grams[place] == wanted]
        runs = [self.words[self.start[p] : self.start[p + 1]] for p in place.tolist()]
        if not runs:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        numbers, shared = np.unique(np.concatenate(runs), return_counts=True)
        similarity = 2 * shared / (len(wanted) + self.sizes[numbers])
        kept = similarity >= MIN_SIMILARITY
        return numbers[kept].astype(np.int64), similarity[kept].astype(np.float32)


def _has_letters_only(word: str) -> bool:
    return bool(word) and not any(character.isdigit() for character in word)


def _trigrams(words: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Trigrams of "^word$" of every word, repeats included, and the word's place; none of ""."""
    text = "".join(f"{_EDGE_START}{word}{_EDGE_END}" if word else "" for word in words)
    lengths = np.array([len(word) + 2 if word else 0 for word in words], np.int64)
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    owner = np.repeat(np.arange(len(words)), lengths)
    if len(codes) < 3:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    bits = np.uint64(_CODE_BITS)
    grams = (((codes[:-2] << bits) | codes[1:-1]) << bits) | codes[2:]
    within = owner[:-2] == owner[2:]
    return grams[within], owner[:-2][within]
