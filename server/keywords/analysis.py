"""Stage 1, analysis: intents, categories coarse to fine, attributes, topics (METHOD §4).

A pure function of a reading and the vocabulary. A query that no item can answer stops here: its
analysis has an intent and nothing else.

Categories come from the catalogue's own paths: each thing the query names votes for the paths of
the items that have it, and the path is followed downwards while one branch holds MIN_SHARE of the
votes. A catalogue without categories gives the things themselves: the head ("door"), then the
whole ("shower door").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from index.attribute_types import AttributeType
from server.keywords.cues import INTENT_PATTERNS, KNOWLEDGE
from server.keywords.keywords import Analysis, Attribute, Intent
from server.keywords.reading import Reading, is_merchandise
from server.keywords.vocabulary import Vocabulary

MIN_SHARE = 0.5
MIN_SHARE_WITHOUT_THING = 0.75
"""A purpose alone belongs to several categories more often than not."""
_TOPIC_TYPES = (AttributeType.ENTITY, AttributeType.FUNCTION, AttributeType.SCENE)
_THING_TYPES = (
    AttributeType.ENTITY,
    AttributeType.MODEL,
    AttributeType.BRAND,
    AttributeType.SERIES,
)
_VOTES = {AttributeType.ENTITY: 4.0, AttributeType.FUNCTION: 2.0, AttributeType.SCENE: 1.0}


def analyse(reading: Reading, vocabulary: Vocabulary) -> Analysis:
    """What a query means."""
    if not is_merchandise(reading):
        return Analysis(intents=(Intent.NON_MERCHANDISE,), merchandise=False)
    attributes = tuple(
        dict.fromkeys(
            Attribute(match.type, match.value)
            for match in reading.matches
            if match.type is not AttributeType.MARKETING
        )
    )
    intents = intents_of(reading, attributes)
    if _asks_for_knowledge(reading, attributes):
        return Analysis(intents=(Intent.NON_MERCHANDISE,), merchandise=False)
    excluded = tuple(
        dict.fromkeys(
            value for phrase in reading.refused for value in values_of(phrase, vocabulary)
        )
    )
    attributes = tuple(a for a in attributes if a.value not in excluded)
    return Analysis(
        intents,
        categories_of(attributes, vocabulary),
        attributes,
        topics_of(reading, attributes, vocabulary),
        True,
        excluded,
    )


def intents_of(reading: Reading, attributes: Sequence[Attribute]) -> tuple[Intent, ...]:
    """Intents in the order of `Intent`. Product where a thing is named, or nothing else fits."""
    found = {intent for intent, pattern in INTENT_PATTERNS.items() if pattern.search(reading.text)}
    if Intent.FUNCTION in found and not INTENT_PATTERNS[Intent.FUNCTION].search(_unnamed(reading)):
        found.remove(Intent.FUNCTION)
    if reading.refused:
        found.add(Intent.NEGATION)
    if any(attribute.type is AttributeType.FUNCTION for attribute in attributes):
        found.add(Intent.FUNCTION)
    names_thing = any(attribute.type in _THING_TYPES for attribute in attributes)
    if names_thing or not found - {Intent.NEGATION, Intent.RANKING}:
        found.add(Intent.PRODUCT)
    return tuple(intent for intent in Intent if intent in found)


def _asks_for_knowledge(reading: Reading, attributes: Sequence[Attribute]) -> bool:
    """A question that names nothing the catalogue has: "what does wg mean?"."""
    return not attributes and not reading.refused and bool(KNOWLEDGE.search(reading.text))


def _unnamed(reading: Reading) -> str:
    """The kept text without the things it names: "防晒霜" is a product, not a purpose."""
    letters = list(reading.kept)
    for match in reading.matches:
        if match.type is AttributeType.ENTITY:
            letters[match.start : match.end] = " " * (match.end - match.start)
    return "".join(letters)


def values_of(phrase: str, vocabulary: Vocabulary) -> list[str]:
    """Canonical values that a refused phrase names; the phrase itself where it names none."""
    matches = vocabulary.matcher.match(phrase)
    covered = sum(match.end - match.start for match in matches)
    if not matches or 2 * covered < len(phrase.replace(" ", "")):
        return [phrase]
    return list(dict.fromkeys(match.value for match in matches))


def topics_of(
    reading: Reading, attributes: Sequence[Attribute], vocabulary: Vocabulary
) -> tuple[str, ...]:
    """Things, purposes and scenes, and the words the dictionary does not have, in text order.

    Such a word joins the topic it stands before if titles have the two side by side.
    """
    wanted = set(attributes)
    spans = [
        (m.start, m.end, m.value, m.type is AttributeType.ENTITY)
        for m in reading.matches
        if m.type in _TOPIC_TYPES and Attribute(m.type, m.value) in wanted
    ]
    spans += [(start, start + len(word), word, True) for start, word in reading.words]
    words_at = dict(reading.words)
    topics: list[str] = []
    last_start, last_takes = -1, False
    for start, end, value, takes in sorted(spans, reverse=True):
        after = topics[-1] if topics else ""
        follows = start in words_at and end + 1 == last_start and value.isascii()
        if follows and last_takes and vocabulary.neighbours(value, after):
            topics[-1] = f"{value} {after}"
        else:
            topics.append(value)
        last_start, last_takes = start, takes
    return tuple(dict.fromkeys(reversed(topics)))


def categories_of(attributes: Sequence[Attribute], vocabulary: Vocabulary) -> tuple[str, ...]:
    """The category path that the attributes point to, as far down as they agree."""
    if not vocabulary.paths:
        return _heads(attributes)
    votes = np.zeros(len(vocabulary.paths))
    for attribute in attributes:
        number = vocabulary.number(attribute.type, attribute.value)
        if attribute.type in _VOTES and number is not None:
            run = slice(
                vocabulary.concept_paths.start[number], vocabulary.concept_paths.start[number + 1]
            )
            counts = vocabulary.concept_path_counts[run]
            paths = vocabulary.concept_paths.values[run]
            # The share of a path's items, so that a large category does not win by its size.
            share = counts / vocabulary.path_counts[paths]
            votes[paths] += _VOTES[attribute.type] * share * counts / counts.sum()
    names_thing = any(a.type is AttributeType.ENTITY for a in attributes)
    return _descend(votes, vocabulary.paths, MIN_SHARE if names_thing else MIN_SHARE_WITHOUT_THING)


def _descend(votes: np.ndarray, paths: Sequence[tuple[str, ...]], least: float) -> tuple[str, ...]:
    chosen: list[str] = []
    members = [number for number in range(len(paths)) if votes[number] > 0]
    total = float(votes.sum())
    while members:
        depth = len(chosen)
        branches: dict[str, float] = {}
        for number in members:
            if len(paths[number]) > depth:
                name = paths[number][depth]
                branches[name] = branches.get(name, 0.0) + float(votes[number])
        if not branches:
            break
        best = max(branches, key=lambda name: (branches[name], name))
        if branches[best] < least * total:
            break
        chosen.append(best)
        members = [n for n in members if len(paths[n]) > depth and paths[n][depth] == best]
    return tuple(chosen)


def _heads(attributes: Sequence[Attribute]) -> tuple[str, ...]:
    """The last thing a query names, from its last word to the whole of it."""
    things = [a.value for a in attributes if a.type is AttributeType.ENTITY]
    if not things:
        return ()
    whole = things[-1]
    head = whole.rsplit(" ", 1)[-1]
    return (head, whole) if head != whole else (whole,)
