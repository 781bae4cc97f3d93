"""The reading of a query: normal form, spelling, refusals, attribute matches, what is left over.

Everything that the stages decide, they decide on this. A reading is made from the query and the
vocabulary alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from index.attribute_types import AttributeType
from index.attributes import Match
from index.text import normalise, words
from server.keywords.cues import CHINESE_STOP, NON_MERCHANDISE, STOP_WORDS
from server.keywords.negation import split_negations
from server.keywords.vocabulary import Vocabulary

_LATIN = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
_CJK_RUN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_NUMBER = re.compile(r"\d+(?:[./]\d+)*")
_COMPOUND = re.compile(r"(?<![\w'-])non?[ -][^\W\d_]+")
MAX_CJK_WORD = 4
# Measures say nothing without their number, which the dictionary did not take.
_UNITS = frozenset(
    ("in", "ft", "yard", "gal", "cu", "sq", "lb", "oz", "watt", "volt", "amp", "mm", "cm", "pack")
)


@dataclass(frozen=True, slots=True)
class Reading:
    """`text`: the query in normal form, respelled where `corrected`. `kept`: it without refusals;
    `refused`: those, as phrases. `matches`: attributes of `kept`. `words`: its other content words,
    in order, with their position in `kept`."""

    text: str
    kept: str
    refused: tuple[str, ...]
    matches: tuple[Match, ...]
    words: tuple[tuple[int, str], ...]
    corrected: bool


def read(query: str, vocabulary: Vocabulary) -> Reading:
    """Read a query (any text)."""
    plain = normalise(query)
    text = vocabulary.spelling.correct(plain)
    split = split_negations(text, vocabulary.neighbours, vocabulary.phrase_length)
    # What is still refused in here is a product's name: "no dig fence".
    compounds = tuple(hit.span() for hit in _COMPOUND.finditer(split.kept))
    matches = tuple(
        match
        for match in vocabulary.matcher.match(split.kept)
        if all(
            match.end <= start or end <= match.start or (match.start <= start and end <= match.end)
            for start, end in compounds
        )
    )
    return Reading(
        text,
        split.kept,
        split.refused,
        matches,
        tuple(_rest(split.kept, matches, compounds, vocabulary)),
        text != plain,
    )


def is_merchandise(reading: Reading) -> bool:
    """Whether a shop's items can answer: not if the query is about the shop, or about nothing.

    "shoes free shipping" names a thing beside what it asks of the shop, so it is merchandise.
    """
    about_shop = NON_MERCHANDISE.search(reading.text)
    if about_shop is None:
        return True
    start, end = about_shop.span()
    return any(
        match.type is AttributeType.ENTITY and not (start < match.end and match.start < end)
        for match in reading.matches
    )


def _rest(
    text: str,
    matches: tuple[Match, ...],
    compounds: tuple[tuple[int, int], ...],
    vocabulary: Vocabulary,
) -> list[tuple[int, str]]:
    """Content words that no match covers; a compound is one word."""
    uncovered = list(text)
    for match in matches:
        uncovered[match.start : match.end] = " " * (match.end - match.start)
    found: list[tuple[int, str]] = []
    for start, end in compounds:
        if not any(match.start < end and start < match.end for match in matches):
            found.append((start, text[start:end]))
        uncovered[start:end] = " " * (end - start)
    rest = "".join(uncovered)
    for hit in _LATIN.finditer(_CJK_RUN.sub(lambda run: " " * len(run[0]), rest)):
        word = hit[0]
        canonical = " ".join(words(word))
        says_nothing = word in STOP_WORDS or canonical in _UNITS or _NUMBER.fullmatch(word)
        if len(word) > 1 and not says_nothing:
            found.append((hit.start(), word))
    for run in _CJK_RUN.finditer(rest):
        found += _cjk_words(run[0], run.start(), vocabulary)
    return sorted(found)


def _cjk_words(run: str, start: int, vocabulary: Vocabulary) -> list[tuple[int, str]]:
    """Pieces of a run that the dictionary left over: characters that titles have side by side."""
    bare = CHINESE_STOP.sub(lambda stop: " " * len(stop[0]), run)
    found: list[tuple[int, str]] = []
    for piece in re.finditer(r"\S+", bare):
        characters = piece[0]
        first = 0
        for i in range(1, len(characters) + 1):
            ends = i == len(characters) or i - first == MAX_CJK_WORD
            if ends or not vocabulary.neighbours(characters[i - 1], characters[i]):
                if i - first >= 2:
                    found.append((start + piece.start() + first, characters[first:i]))
                first = i
    return found
