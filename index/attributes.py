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
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import ahocorasick
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from index.attribute_types import (
    ATTRIBUTE_KEYS,
    EMPTY_VALUES,
    LIST_COLUMNS,
    PATTERNS,
    PRIORITY,
    STOP_WORDS,
    AttributeType,
    lexicon,
)
from index.errors import ArtifactError, DataError
from index.text import normalise

DICTIONARY_FILE = "attributes.json"
MAX_KEYWORDS = 8
MAX_SURFACE_LENGTH = 60
MAX_MINED_ENTITIES = 20_000
MIN_ENTITY_TITLES = 3  # a head noun is an entity from this many titles on …
ENTITY_TITLE_SHARE = 1 / 5_000  # … or from this share of all titles, whichever is more
MIN_VALUE_ITEMS = 2  # rarer colours and materials of a large catalogue are slips
LARGE_CATALOGUE = 1_000
MIN_BRAND_SHARE = 0.2  # a one-word brand is a generic word if fewer of its titles are the brand's

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

_SEPARATORS = re.compile(r"\s*[/;|,]\s*")
_BRACKETED = re.compile(r"\s*[(\[]([^)\]]*)[)\]]\s*")
_HEAD_END = re.compile(
    r"\s*[,(\[|;:【】]|\s[-–—]\s|(?<![\d/])\s(?:in|with|for|w/|by|from|of)\s", re.UNICODE
)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_CATEGORY_PARTS = re.compile(r"\s*(?:[/,|;]|&|\band\b)\s*")
_DIGIT = re.compile(r"\d")
# Words of these types are no part of a mined entity: "black dress" is a colour and a dress.
_NOT_IN_ENTITY = frozenset(AttributeType) - {
    AttributeType.ENTITY,
    AttributeType.FUNCTION,
    AttributeType.SCENE,
    AttributeType.STYLE,
}


class Entry(NamedTuple):
    """What a surface means."""

    type: AttributeType
    value: str


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
        return AttributeDictionary(_Builder(items).build())

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
    return not (_joins(text[position - 1]) and _joins(text[position]))


def _joins(character: str) -> bool:
    """Letters, digits and marks hold a word together, unless their script has no spaces."""
    if character.isascii():
        return character.isalnum()
    if (
        "\u2e80" <= character <= "\ua4cf"  # CJK, kana, bopomofo, Yi
        or "\uf900" <= character <= "\ufaff"
        or "\U00020000" <= character <= "\U0003ffff"
        or "\u0e00" <= character <= "\u0eff"  # Thai, Lao
        or "\u1000" <= character <= "\u109f"  # Myanmar
        or "\u1780" <= character <= "\u17ff"  # Khmer
    ):
        return False
    return character.isalnum() or unicodedata.category(character).startswith("M")


class _Builder:
    """Collects surfaces from an item table, then from the lexicon."""

    def __init__(self, items: pa.Table) -> None:
        self.items = items
        self.titles = [normalise(title or "") for title in _strings(items, "title")]
        self.entries: dict[str, Entry] = {}

    def build(self) -> dict[str, Entry]:
        words = Counter[str]()
        for title in self.titles:
            words.update(set(title.split()))
        minimum = MIN_VALUE_ITEMS if self.items.num_rows >= LARGE_CATALOGUE else 1
        for column, kind in LIST_COLUMNS.items():
            self.add_values(kind, _flat_counts(self.items, column), minimum)
        for kind, counts in self.mapped_attributes().items():
            self.add_values(kind, counts, minimum)
        for kind, values in lexicon().items():
            for value, surfaces in values.items():
                canonical = normalise(value)
                for surface in (value, *surfaces):
                    self.entries[normalise(surface)] = Entry(kind, canonical)
        self.add_brands(Counter(b for b in _strings(self.items, "brand") if b), words)
        leaves = Counter(path[-1] for path in _lists(self.items, "category") if path)
        self.add_categories(leaves)
        self.add_head_nouns()
        return self.entries

    def add(self, kind: AttributeType, surface: str, value: str) -> None:
        """Add unless nothing is in it or a type of higher priority has it."""
        surface = normalise(surface)
        value = normalise(value)
        if (
            not 2 <= len(surface) <= MAX_SURFACE_LENGTH
            or surface in EMPTY_VALUES
            or surface in STOP_WORDS
            or not any(character.isalpha() for character in surface)
        ):
            return
        held = self.entries.get(surface)
        if held is None or PRIORITY[kind] < PRIORITY[held.type]:
            self.entries[surface] = Entry(kind, value)

    def add_values(self, kind: AttributeType, counts: Counter[str], minimum: int) -> None:
        for value, count in counts.items():
            if count >= minimum and normalise(value) not in EMPTY_VALUES:
                bare = _BRACKETED.sub(" ", value).strip()
                self.add(kind, value, bare or value)
                for part in (*_SEPARATORS.split(bare), *_BRACKETED.findall(value)):
                    self.add(kind, part, part if part in bare else bare or part)

    def add_brands(self, counts: Counter[str], words: Counter[str]) -> None:
        """A one-word brand that is mostly used otherwise ("home") would only mislead."""
        by_surface = Counter[str]()
        for brand, count in counts.items():
            by_surface[normalise(brand)] += count
        for brand, count in by_surface.items():
            held = self.entries.get(brand)
            generic = " " not in brand and count < MIN_BRAND_SHARE * words[brand]
            if not generic and held is None:
                self.add(AttributeType.BRAND, brand, brand)

    def add_categories(self, leaves: Counter[str]) -> None:
        for leaf, _ in sorted(leaves.items()):
            name = normalise(leaf)
            for part in {name, *_CATEGORY_PARTS.split(name)}:
                for form in (part, *_other_number(part)):
                    if form not in self.entries:
                        self.add(AttributeType.ENTITY, form, part)

    def add_head_nouns(self) -> None:
        """Entities that titles end their first phrase with: "… 2-drawer oak desk, natural"."""
        counts = Counter[str]()
        for title in self.titles:
            counts.update(self.heads(title))
        minimum = max(MIN_ENTITY_TITLES, math.ceil(len(self.titles) * ENTITY_TITLE_SHARE))
        frequent = [(head, count) for head, count in counts.items() if count >= minimum]
        frequent.sort(key=lambda pair: (-pair[1], pair[0]))
        for head, _ in frequent[:MAX_MINED_ENTITIES]:
            if head in self.entries:
                continue
            self.add(AttributeType.ENTITY, head, head)
            for form in _other_number(head):
                if form not in self.entries:
                    self.add(AttributeType.ENTITY, form, head)

    def heads(self, title: str) -> set[str]:
        end = _HEAD_END.search(title, 1)
        words = title[: end.start() if end else None].split()
        while words and not _WORD.fullmatch(words[-1]):
            words.pop()
        if not words or words[-1] in STOP_WORDS:
            return set()
        last = words[-1]
        held = self.entries.get(last)
        if held is not None and held.type is AttributeType.COLOR:
            return set()
        if not _joins(last[-1]):
            return {last[-length:] for length in (2, 3, 4) if len(last) >= length}
        if len(last) < 3:
            return set()
        heads = {last}
        for length in (2, 3):
            phrase = words[-length:]
            if len(phrase) < length or not all(self.in_entity(word) for word in phrase[:-1]):
                break
            heads.add(" ".join(phrase))
        return heads

    def in_entity(self, word: str) -> bool:
        held = self.entries.get(word)
        return (
            _WORD.fullmatch(word) is not None
            and word not in STOP_WORDS
            and (held is None or held.type not in _NOT_IN_ENTITY)
        )

    def mapped_attributes(self) -> dict[AttributeType, Counter[str]]:
        """Values of the attribute keys whose name tells a type."""
        found: dict[AttributeType, Counter[str]] = {}
        if "attributes" not in self.items.column_names:
            return found
        for row in self.items["attributes"].to_pylist():
            for key, values in row or ():
                kind = ATTRIBUTE_KEYS.get(key.strip().casefold().replace("_", " "))
                if kind is not None:
                    found.setdefault(kind, Counter()).update(v for v in values or () if v)
        return found


def _other_number(phrase: str) -> list[str]:
    """The plural of an English singular or the reverse; nothing for other scripts."""
    if not phrase.isascii() or len(phrase) < 3 or not phrase[-1].isalpha():
        return []
    if phrase.endswith("ies") and len(phrase) > 4:
        return [phrase[:-3] + "y"]
    if phrase.endswith(("sses", "xes", "ches", "shes")):
        return [phrase[:-2]]
    if phrase.endswith("s") and not phrase.endswith(("ss", "us", "is")):
        return [phrase[:-1]]
    if phrase.endswith("y") and phrase[-2] not in "aeiou":
        return [phrase[:-1] + "ies"]
    if phrase.endswith(("s", "x", "z", "ch", "sh")):
        return [phrase + "es"]
    return [phrase + "s"]


def _strings(items: pa.Table, column: str) -> list[str | None]:
    return items[column].to_pylist() if column in items.column_names else []


def _lists(items: pa.Table, column: str) -> list[list[str] | None]:
    return items[column].to_pylist() if column in items.column_names else []


def _flat_counts(items: pa.Table, column: str) -> Counter[str]:
    if column not in items.column_names:
        return Counter()
    counts = pc.value_counts(pc.list_flatten(items[column])).to_pylist()
    return Counter({c["values"]: c["counts"] for c in counts if c["values"]})
