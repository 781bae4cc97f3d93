"""Attribute dictionary and matcher: the keywords that enhance item and query embeddings (KHQE).

Source: OneSearch (METHOD §2): Aho-Corasick over 18 attribute types, the longest match wins,
overlapped shorter matches are dropped. The dictionary is learned from a catalogue's own columns
and titles, on top of a small lexicon of generic words; a JSON file adds or overrides.

Invariants. A surface is normalised text (`index.text.normalise`) and belongs to exactly one type.
On conflicts an extension file beats the lexicon, the lexicon beats the catalogue, and within the
catalogue the type that comes first in `AttributeType` wins. Matches never overlap and come in
text order. A match never starts or ends inside a word, except in scripts written without spaces.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import ahocorasick
import orjson
import pyarrow as pa

from index.attribute_mining import mine
from index.attribute_types import PATTERNS, AttributeType, Entry, joins
from index.errors import ArtifactError, DataError
from index.text import normalise

DICTIONARY_FILE = "attributes.json"
MAX_KEYWORDS = 8

KEYWORD_ORDER = (
    AttributeType.ENTITY,
    AttributeType.BRAND,
    AttributeType.MODEL,
    AttributeType.SERIES,
    AttributeType.FUNCTION,
    AttributeType.MATERIAL,
    AttributeType.COLOR,
    AttributeType.AUDIENCE,
    AttributeType.SCENE,
    AttributeType.STYLE,
    AttributeType.SEASON,
    AttributeType.PATTERN,
    AttributeType.SPECIFICATIONS,
    AttributeType.MODIFIER,
    AttributeType.LOCATION,
    AttributeType.ANCHOR,
    AttributeType.PRICE,
)
_KEYWORD_RANK = {kind: rank for rank, kind in enumerate(KEYWORD_ORDER)}

_DIGIT = re.compile(r"\d")


class Match(NamedTuple):
    """`surface` = normalised text[start:end]; `value` is its canonical form."""

    type: AttributeType
    value: str
    surface: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class AttributeDictionary:
    """Surfaces (normalised) and their meaning."""

    entries: Mapping[str, Entry]

    @staticmethod
    def build(items: pa.Table) -> AttributeDictionary:
        """Learn from an item table (schema `index.dataset.ITEMS`; absent columns are skipped)."""
        return AttributeDictionary(mine(items))

    @staticmethod
    def of(types: Mapping[str, Mapping[str, Iterable[str]]]) -> AttributeDictionary:
        """From `{type: {canonical: [surface, …]}}`. Raises DataError on an unknown type."""
        return AttributeDictionary({}).updated(types)

    def updated(
        self, types: Mapping[str, Mapping[str, Iterable[str]]], *, path: Path | None = None
    ) -> AttributeDictionary:
        """A dictionary in which the given surfaces mean what `types` says."""
        entries = dict(self.entries)
        for name, values in types.items():
            try:
                kind = AttributeType(name)
            except ValueError:
                known = ", ".join(AttributeType)
                raise DataError(
                    f"{name!r} is not an attribute type; use one of {known}", path=path, field=name
                ) from None
            for canonical, surfaces in values.items():
                value = normalise(canonical)
                for surface in (canonical, *surfaces):
                    if key := normalise(surface):
                        entries[key] = Entry(kind, value or key)
        return AttributeDictionary(entries)

    def extend(self, path: Path) -> AttributeDictionary:
        """Add the words of a JSON file `{type: {canonical: [surface, …]}}`; they win conflicts."""
        return self.updated(_read_types(path), path=path)

    def save(self, directory: Path) -> None:
        """Write `attributes.json`, in the very format that `extend` reads, sorted."""
        types: dict[str, dict[str, list[str]]] = {}
        for surface, entry in sorted(self.entries.items()):
            surfaces = types.setdefault(entry.type.value, {}).setdefault(entry.value, [])
            surfaces.append(surface)
        directory.mkdir(parents=True, exist_ok=True)
        options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2
        (directory / DICTIONARY_FILE).write_bytes(orjson.dumps(types, option=options))

    @staticmethod
    def open(directory: Path) -> AttributeDictionary:
        """Read what `save` wrote. Raises ArtifactError if it is missing or damaged."""
        path = directory / DICTIONARY_FILE
        try:
            types = _read_types(path)
            entries = {
                surface: Entry(AttributeType(kind), value)
                for kind, values in types.items()
                for value, surfaces in values.items()
                for surface in surfaces
            }
        except (DataError, ValueError) as error:
            raise ArtifactError(f"{path}: not an attribute dictionary ({error})") from error
        return AttributeDictionary(entries)


def _read_types(path: Path) -> dict[str, dict[str, list[str]]]:
    shape = "expected JSON {type: {canonical: [surface, …]}}"
    try:
        types: Any = orjson.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read it: {error.strerror}", path=path) from error
    except orjson.JSONDecodeError as error:
        raise DataError(f"{shape}; {error}", path=path) from error
    if not isinstance(types, dict):
        raise DataError(shape, path=path)
    for kind, values in cast("dict[str, Any]", types).items():
        if not isinstance(values, dict):
            raise DataError(shape, path=path, field=kind)
        for canonical, surfaces in cast("dict[str, Any]", values).items():
            listed = cast("list[Any]", surfaces) if isinstance(surfaces, list) else [None]
            if not all(isinstance(surface, str) for surface in listed):
                raise DataError(f"{shape}, not for {canonical!r}", path=path, field=kind)
    return cast("dict[str, dict[str, list[str]]]", types)


class AttributeMatcher:
    """Finds a dictionary's surfaces, sizes, prices and model numbers in a text.

    Built in milliseconds from the dictionary, immutable afterwards, safe to share among threads.
    """

    def __init__(self, dictionary: AttributeDictionary) -> None:
        automaton = ahocorasick.Automaton()
        for surface, entry in dictionary.entries.items():
            automaton.add_word(surface, (len(surface), entry))
        self._automaton = automaton if dictionary.entries else None
        if self._automaton is not None:
            automaton.make_automaton()

    def match(self, text: str) -> list[Match]:
        """Non-overlapping matches in text order; positions refer to `normalise(text)`."""
        text = normalise(text)
        found: list[Match] = []
        if self._automaton is not None:
            for last, (length, entry) in self._automaton.iter(text):
                start, end = last - length + 1, last + 1
                if _is_boundary(text, start) and _is_boundary(text, end):
                    found.append(Match(entry.type, entry.value, text[start:end], start, end))
        if _DIGIT.search(text):
            for pattern in PATTERNS:
                for hit in pattern.expression.finditer(text):
                    surface = hit.group()
                    value = pattern.value(surface)
                    found.append(Match(pattern.type, value, surface, hit.start(), hit.end()))
        return found if len(found) < 2 else _longest(found)

    def keywords(self, text: str) -> list[str]:
        """Canonical values to fuse into the embedding of `text`: distinct, in text order.

        Marketing words are dropped; of more than MAX_KEYWORDS the telling types (KEYWORD_ORDER)
        stay.
        """
        first: dict[str, Match] = {}
        for match in self.match(text):
            if match.type is not AttributeType.MARKETING:
                first.setdefault(match.value, match)
        kept = list(first.values())
        if len(kept) > MAX_KEYWORDS:
            kept = sorted(kept, key=lambda m: (_KEYWORD_RANK[m.type], m.start))[:MAX_KEYWORDS]
            kept.sort(key=lambda m: m.start)
        return [match.value for match in kept]


def _longest(found: list[Match]) -> list[Match]:
    """Longest first, then leftmost, then by order found (words before patterns)."""
    found.sort(key=lambda m: (m.start - m.end, m.start))
    covered = bytearray(max(match.end for match in found))
    taken: list[Match] = []
    for match in found:
        # Whatever is taken is at least as long, so an overlap covers one of the two ends.
        if not covered[match.start] and not covered[match.end - 1]:
            covered[match.start : match.end] = b"\1" * (match.end - match.start)
            taken.append(match)
    taken.sort(key=lambda m: m.start)
    return taken


def _is_boundary(text: str, position: int) -> bool:
    """Whether a word may start or end before `text[position]`."""
    if position in (0, len(text)):
        return True
    return not (joins(text[position - 1]) and joins(text[position]))
