"""What a catalogue teaches the attribute dictionary: its columns, keys and the heads of its titles.

A surface belongs to the lexicon's type; else, of those that columns, attribute keys, brands and
category leaves give it, to the type of highest priority; else it may be an entity from titles.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
import re
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from index.attribute_types import (
    ATTRIBUTE_KEYS,
    EMPTY_VALUES,
    LIST_COLUMNS,
    NOT_ALONE,
    PRIORITY,
    STOP_WORDS,
    AttributeType,
    Entry,
    joins,
    lexicon,
)
from index.text import normalise

MAX_SURFACE_LENGTH = 60
MAX_MINED_ENTITIES = 20_000
MIN_ENTITY_TITLES = 3  # a head noun is an entity from this many titles on …
ENTITY_TITLE_SHARE = 1 / 5_000  # … or from this share of all titles, whichever is more
MIN_VALUE_ITEMS = 2  # rarer colours and materials of a large catalogue are slips
LARGE_CATALOGUE = 1_000
MIN_BRAND_SHARE = 0.2  # a one-word brand is a generic word if fewer of its titles are the brand's

_SEPARATORS = re.compile(r"\s*[/;|,]\s*")
_BRACKETED = re.compile(r"\s*[(\[]([^)\]]*)[)\]]\s*")
_HEAD_END = re.compile(
    r"\s*[,(\[|;:【】]|\s[-–—]\s|(?<![\d/])\s(?:in|with|for|w/|by|from|of)\s", re.UNICODE
)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_CATEGORY_PARTS = re.compile(r"\s*(?:[/,|;]|&|\band\b)\s*")
_PLURALS = {
    "knife": "knives",
    "shelf": "shelves",
    "scarf": "scarves",
    "leaf": "leaves",
    "loaf": "loaves",
    "mouse": "mice",
    "foot": "feet",
}
_IRREGULAR = {**_PLURALS, **{plural: singular for singular, plural in _PLURALS.items()}}
# Words of these types are no part of a mined entity: "black dress" is a colour and a dress.
_NOT_IN_ENTITY = frozenset(AttributeType) - {
    AttributeType.ENTITY,
    AttributeType.FUNCTION,
    AttributeType.SCENE,
    AttributeType.STYLE,
}


def mine(items: pa.Table) -> dict[str, Entry]:
    """Surfaces of an item table (schema `index.dataset.ITEMS`; absent columns are skipped)."""
    return _Miner(items).build()


class _Miner:
    """Collects surfaces from an item table, then from the lexicon."""

    def __init__(self, items: pa.Table) -> None:
        self.items = items
        self.titles = [normalise(title or "") for title in _strings(items, "title")]
        self.entries: dict[str, Entry] = {
            normalise(surface): Entry(kind, normalise(value))
            for kind, values in lexicon().items()
            for value, surfaces in values.items()
            for surface in (value, *surfaces)
        }
        self.lexical = frozenset(self.entries)

    def build(self) -> dict[str, Entry]:
        words = Counter[str]()
        for title in self.titles:
            words.update(set(title.split()))
        minimum = MIN_VALUE_ITEMS if self.items.num_rows >= LARGE_CATALOGUE else 1
        for column, kind in LIST_COLUMNS.items():
            self.add_values(kind, _flat_counts(self.items, column), minimum)
        for kind, counts in self.mapped_attributes().items():
            self.add_values(kind, counts, minimum)
        self.add_brands(Counter(b for b in _strings(self.items, "brand") if b), words)
        leaves = Counter(path[-1] for path in _lists(self.items, "category") if path)
        self.add_categories(leaves)
        self.add_head_nouns()
        return self.entries

    def add(self, kind: AttributeType, surface: str, value: str) -> None:
        """Add unless it says nothing, or the lexicon or a type of higher priority has it."""
        surface = normalise(surface)
        value = normalise(value)
        if (
            not 2 <= len(surface) <= MAX_SURFACE_LENGTH
            or surface in self.lexical
            or surface in EMPTY_VALUES
            or surface in STOP_WORDS | NOT_ALONE
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
            generic = " " not in brand and count < MIN_BRAND_SHARE * words[brand]
            if not generic:
                self.add(AttributeType.BRAND, brand, brand)

    def add_categories(self, leaves: Counter[str]) -> None:
        for leaf, _ in sorted(leaves.items()):
            name = normalise(leaf)
            for part in {name, *_CATEGORY_PARTS.split(name)}:
                for form in (part, *_other_number(part)):
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
        if not joins(last[-1]):
            return {last[-length:] for length in (2, 3, 4) if len(last) >= length}
        if len(last) < 3:
            return set()
        heads = set() if last in NOT_ALONE else {last}
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
    rest, space, last = phrase.rpartition(" ")
    if last in _IRREGULAR:
        return [rest + space + _IRREGULAR[last]]
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
