"""Queries that people could have typed for an item, sampled from its text.

A model of how real training queries relate to the items they were typed for:

    length       drawn from the real queries' lengths
    words        title words without replacement, with probability ∝ the learned propensity
                 P(word in query | word in title), times a factor for its place in the title
    swaps        a title word replaced by a query word that stands for it, from a translation
                 table counted on training pairs (co-occurrence lift)
    n-grams      a share of queries is one contiguous run of the title
    slips        typing slips, neighbouring words joined

All tables are fitted on training pairs only; with few or no pairs the priors alone are used
(shorter queries, early words, no translations). The propensity is a smoothed ratio of counts, the
translation a lift-filtered co-occurrence.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRIOR_STRENGTH = 8.0
PRIOR_PROPENSITY = 0.25
PRIOR_LENGTHS = {1: 2, 2: 5, 3: 6, 4: 4, 5: 2}
MAX_LENGTH = 10
PLACE_EDGES = (1, 2, 3, 4, 6, 9, 13)
SWAP_SHARE = 0.18
ADD_SHARE = 0.08
NGRAM_SHARE = 0.15
SLIP_SHARE = 0.06
JOIN_SHARE = 0.03
SHUFFLE_SHARE = 0.3
MIN_TRANSLATION_COUNT = 2
MIN_TRANSLATION_LIFT = 4.0
MAX_TRANSLATIONS = 8
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, eq=False)
class PseudoQueryModel:
    """Fitted tables; `sample` draws queries. Build with `fit`."""

    propensity: dict[str, float]
    place_factor: NDArray[np.float64]
    lengths: NDArray[np.int64]
    translations: dict[str, tuple[list[str], NDArray[np.float64]]]

    def propensities(self, title: Sequence[str]) -> NDArray[np.float64]:
        """Propensity of each title word, float64 (len(title),)."""
        base = np.array([self.propensity.get(word, PRIOR_PROPENSITY) for word in title])
        places = np.searchsorted(PLACE_EDGES, np.arange(len(title)), side="right")
        return base * self.place_factor[places]

    def sample(self, titles: Sequence[Sequence[str]], random: np.random.Generator) -> list[str]:
        """One query for each title (a list of words). An empty title gives an empty query."""
        lengths = random.choice(self.lengths, size=len(titles))
        chances = random.random((len(titles), 5))
        return [
            self._sample_one(title, int(length), chance, random)
            for title, length, chance in zip(titles, lengths, chances, strict=True)
        ]

    def _sample_one(
        self,
        title: Sequence[str],
        length: int,
        chance: NDArray[np.float64],
        random: np.random.Generator,
    ) -> str:
        if not title:
            return ""
        length = min(length, len(title))
        weights = self.propensities(title)
        if chance[0] < NGRAM_SHARE:
            chosen = _contiguous_run(title, weights, length, random)
        else:
            keys = random.random(len(title)) ** (1.0 / np.maximum(weights, 1e-6))
            picked = np.argpartition(-keys, length - 1)[:length]
            places = map(int, np.sort(picked))
            chosen = list(dict.fromkeys(title[place] for place in places))
            if chance[1] < SHUFFLE_SHARE and len(chosen) > 1:
                random.shuffle(chosen)
        if chance[2] < 3 * SWAP_SHARE:
            chosen = self._swap(chosen, title, random)
        if chance[3] < JOIN_SHARE and len(chosen) > 1:
            place = int(random.integers(len(chosen) - 1))
            chosen[place : place + 2] = [chosen[place] + chosen[place + 1]]
        if chance[4] < SLIP_SHARE:
            place = int(random.integers(len(chosen)))
            chosen[place] = slip(chosen[place], random)
        return " ".join(chosen)

    def _swap(
        self, chosen: list[str], title: Sequence[str], random: np.random.Generator
    ) -> list[str]:
        swapped: list[str] = []
        for word in chosen:
            entry = self.translations.get(word)
            if entry is not None and random.random() < SWAP_SHARE * 2:
                swapped.append(_draw(entry, random))
            else:
                swapped.append(word)
        if random.random() < ADD_SHARE * 3:
            known = [word for word in title if word in self.translations]
            if known:
                word = known[int(random.integers(len(known)))]
                swapped.append(_draw(self.translations[word], random))
        return list(dict.fromkeys(swapped))


def fit(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> PseudoQueryModel:
    """Fit on (query words, title words) of relevant training pairs."""
    in_title: Counter[str] = Counter()
    in_both: Counter[str] = Counter()
    place_seen = np.zeros(len(PLACE_EDGES) + 1)
    place_hit = np.zeros(len(PLACE_EDGES) + 1)
    lengths: Counter[int] = Counter()
    query_words: Counter[str] = Counter()
    together: dict[str, Counter[str]] = defaultdict(Counter)
    pair_count = 0
    for query, title in pairs:
        pair_count += 1
        query_set, title_words = set(query), list(dict.fromkeys(title))
        title_set = set(title_words)
        lengths[min(max(len(query), 1), MAX_LENGTH)] += 1
        for place, word in enumerate(title_words):
            bucket = int(np.searchsorted(PLACE_EDGES, place, side="right"))
            in_title[word] += 1
            place_seen[bucket] += 1
            if word in query_set:
                in_both[word] += 1
                place_hit[bucket] += 1
        for word in query_set - title_set:
            query_words[word] += 1
            for title_word in title_set:
                together[title_word][word] += 1
    mean = (place_hit.sum() + PRIOR_STRENGTH * PRIOR_PROPENSITY) / (
        place_seen.sum() + PRIOR_STRENGTH
    )
    propensity = {
        word: (in_both[word] + PRIOR_STRENGTH * mean) / (count + PRIOR_STRENGTH)
        for word, count in in_title.items()
    }
    prior_rate = mean * np.linspace(1.3, 0.7, len(place_seen))
    place_rate = (place_hit + 50 * prior_rate) / (place_seen + 50)
    return PseudoQueryModel(
        propensity=propensity,
        place_factor=place_rate / max(mean, 1e-9),
        lengths=_length_pool(lengths),
        translations=_translations(together, in_title, query_words, pair_count),
    )


def slip(word: str, random: np.random.Generator) -> str:
    """One typing slip: a letter dropped, doubled, swapped with its neighbour or replaced."""
    if len(word) < 4 or not word.isalpha():
        return word
    place = int(random.integers(1, len(word) - 1))
    match int(random.integers(4)):
        case 0:
            return word[:place] + word[place + 1 :]
        case 1:
            return word[:place] + word[place] + word[place:]
        case 2:
            return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        case _:
            return word[:place] + _LETTERS[int(random.integers(26))] + word[place + 1 :]


def _length_pool(lengths: Counter[int]) -> NDArray[np.int64]:
    mixed = Counter(PRIOR_LENGTHS)
    mixed.update(lengths)
    return np.array(list(mixed.elements()), np.int64)


def _contiguous_run(
    title: Sequence[str],
    weights: NDArray[np.float64],
    length: int,
    random: np.random.Generator,
) -> list[str]:
    sums = np.convolve(weights, np.ones(length), mode="valid")
    start = int(random.choice(len(sums), p=sums / sums.sum()))
    return [title[i] for i in range(start, start + length)]


def _draw(entry: tuple[list[str], NDArray[np.float64]], random: np.random.Generator) -> str:
    words, cumulative = entry
    return words[int(np.searchsorted(cumulative, random.random()))]


def _translations(
    together: dict[str, Counter[str]],
    in_title: Counter[str],
    query_words: Counter[str],
    pair_count: int,
) -> dict[str, tuple[list[str], NDArray[np.float64]]]:
    table: dict[str, tuple[list[str], NDArray[np.float64]]] = {}
    for title_word, counts in together.items():
        scored = [
            (count * count / in_title[title_word], word)
            for word, count in counts.items()
            if count >= MIN_TRANSLATION_COUNT
            and count * pair_count
            >= MIN_TRANSLATION_LIFT * in_title[title_word] * query_words[word]
        ]
        scored.sort(key=lambda pair: (-pair[0], pair[1]))
        if scored:
            kept = scored[:MAX_TRANSLATIONS]
            share = np.array([score for score, _ in kept])
            cumulative = np.cumsum(share / share.sum())
            cumulative[-1] = 1.0
            table[title_word] = ([word for _, word in kept], cumulative)
    return table
