"""What a catalogue knows of words: built once from a snapshot, read-only, shared by all stages.

A *concept* is a typed value of the attribute dictionary that items have: (Color, "navy"),
(Entity, "dog beds"). Items have the concepts that their titles and columns name. From them come
frequencies and popularity, the categories that a concept belongs to, and, for feedback, which
concepts a set of items has. Pairs of neighbouring title words tell product words ("non slip",
"scroll saw") from accidents.

Time and memory: one matcher pass over the titles, so seconds for 50,000 items; of larger catalogues
MAX_ITEMS, the most popular, are read. `n_bytes` is what the arrays take, about 60 bytes an item;
dictionaries of strings add about as much again.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.attribute_mining import MAX_SURFACE_LENGTH
from index.attribute_types import ATTRIBUTE_KEYS, LIST_COLUMNS, AttributeType, joins
from index.attributes import AttributeDictionary, AttributeMatcher
from index.lexical import LexicalIndex
from index.snapshot import Snapshot, texts_of
from index.text import normalise, words
from server.keywords.spelling import Spelling

MAX_ITEMS = 200_000
MIN_BIGRAM_ITEMS = 2
MAX_DESCRIPTION_CHARACTERS = 500
_PLAIN_WORD = re.compile(r"[a-z]{3,}")

# Types that stand for one item only or for no property of it.
_NO_CONCEPT = frozenset(
    (AttributeType.PRICE, AttributeType.MARKETING, AttributeType.MODEL, AttributeType.ANCHOR)
)


class Concept(NamedTuple):
    """A property or a kind of thing, e.g. (Color, "navy"). `value` is canonical, in normal form."""

    type: AttributeType
    value: str


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Numbers by row: values[start[r]:start[r + 1]]. `start` int64 (n + 1,), `values` int32."""

    start: NDArray[np.int64]
    values: NDArray[np.int32]

    @classmethod
    def of_pairs(cls, row: NDArray[np.int64], value: NDArray[np.int64], n_rows: int) -> Runs:
        """From pairs, each once however often it is given, ascending within a row."""
        width = int(value.max()) + 1 if len(value) else 1
        pairs = np.unique(row * width + value)
        row, value = np.divmod(pairs, width)
        start = np.zeros(n_rows + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=n_rows), out=start[1:])
        return cls(start, value.astype(np.int32))

    def of(self, row: int) -> NDArray[np.int32]:
        return self.values[self.start[row] : self.start[row + 1]]

    def gather(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(position in `rows`, value) of all values of the given rows, in order."""
        first, count = self.start[rows], self.start[rows + 1] - self.start[rows]
        position = np.repeat(np.arange(len(rows)), count)
        ends = np.cumsum(count)
        inside = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - count, count)
        return position, self.values[np.repeat(first, count) + inside]

    @property
    def n_bytes(self) -> int:
        return self.start.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """See the module. Rows are the snapshot's item rows; of rows beyond MAX_ITEMS nothing is known.

    `frequency` int32 and `popularity` float32, (C,): items that have a concept, and the same
    weighted by 1 + log(1 + popularity of the item). `paths`: categories coarse to fine; `path_of`
    int32 (n_items,), -1 for none. `bigrams` int64, ascending: token · T + next token.
    """

    version: str
    matcher: AttributeMatcher
    lexical: LexicalIndex
    spelling: Spelling
    concepts: tuple[Concept, ...]
    number_of: Mapping[Concept, int]
    frequency: NDArray[np.int32]
    popularity: NDArray[np.float32]
    items: Runs
    paths: tuple[tuple[str, ...], ...]
    path_of: NDArray[np.int32]
    path_counts: NDArray[np.int64]
    concept_paths: Runs
    concept_path_counts: NDArray[np.int32]
    bigrams: NDArray[np.int64]
    n_read: int

    @classmethod
    def build(cls, snapshot: Snapshot) -> Vocabulary:
        """Read a snapshot's items."""
        matcher = AttributeMatcher(without_fragments(snapshot.attributes))
        chosen = _most_popular(snapshot)
        table = snapshot.items.table
        if len(chosen) < len(table):
            table = table.take(pa.array(chosen))
        concepts: dict[Concept, int] = {}
        row, number = _concepts_of(table, matcher, concepts)
        n_items = len(snapshot.items)
        items = Runs.of_pairs(chosen[row], number, n_items)
        position, values = items.gather(np.arange(n_items))
        weight = 1.0 + np.log1p(np.maximum(snapshot.items.popularity, 0.0))
        paths, path_of_chosen = _paths_of(table)
        path_of = np.full(n_items, -1, np.int32)
        path_of[chosen] = path_of_chosen
        concept_paths, path_pair_counts = _count_pairs(
            values.astype(np.int64), path_of[position].astype(np.int64), len(concepts)
        )
        lexical = snapshot.lexical
        return cls(
            version=snapshot.version,
            matcher=matcher,
            lexical=lexical,
            spelling=Spelling(lexical, _other_words(snapshot.attributes.entries, table)),
            concepts=tuple(concepts),
            number_of=concepts,
            frequency=np.bincount(values, minlength=len(concepts)).astype(np.int32),
            popularity=np.bincount(
                values, weights=weight[position], minlength=len(concepts)
            ).astype(np.float32),
            items=items,
            paths=paths,
            path_of=path_of,
            path_counts=np.bincount(path_of[path_of >= 0], minlength=len(paths)),
            concept_paths=concept_paths,
            concept_path_counts=path_pair_counts,
            bigrams=_bigrams(texts_of(table), lexical.vocabulary),
            n_read=len(chosen),
        )

    @property
    def n_bytes(self) -> int:
        """Bytes of the arrays; the lexical index is the snapshot's own and does not count."""
        arrays = (
            self.frequency,
            self.popularity,
            self.path_of,
            self.path_counts,
            self.concept_path_counts,
            self.bigrams,
        )
        runs = (self.items, self.concept_paths)
        return sum(a.nbytes for a in arrays) + sum(r.n_bytes for r in runs)

    def number(self, kind: AttributeType, value: str) -> int | None:
        """The concept's number, None if no item has it."""
        return self.number_of.get(Concept(kind, value))

    def numbers_of_value(self, value: str) -> list[int]:
        """Numbers of the concepts of any type with this value."""
        found = (self.number_of.get(Concept(kind, value)) for kind in AttributeType)
        return [number for number in found if number is not None]

    def neighbours(self, first: str, second: str) -> bool:
        """Whether titles have the two words (or characters) next to each other."""
        known = self.lexical.vocabulary
        one, two = words(first), words(second)
        if not one or not two or one[-1] not in known or two[0] not in known:
            return False
        key = known[one[-1]] * len(known) + known[two[0]]
        place = int(np.searchsorted(self.bigrams, key))
        return place < len(self.bigrams) and int(self.bigrams[place]) == key

    def phrase_length(self, text: str) -> int:
        """Length of the longest dictionary phrase at the start of a text, 0 if there is none."""
        matches = self.matcher.match(text[:MAX_SURFACE_LENGTH])
        return matches[0].end if matches and matches[0].start == 0 else 0

    def word_frequency(self, word: str) -> int:
        """Items that have a word, in its canonical spelling."""
        tokens = words(word)
        number = self.lexical.vocabulary.get(tokens[0]) if len(tokens) == 1 else None
        if number is None:
            return 0
        return int(self.lexical.start[number + 1] - self.lexical.start[number])

    def phrase_popularity(self, phrase: str) -> float:
        """Items of a phrase's rarest word; 0 if a word is unknown."""
        counts = [self.word_frequency(word) for word in words(phrase)]
        return float(min(counts)) if counts else 0.0


def without_fragments(dictionary: AttributeDictionary) -> AttributeDictionary:
    """The dictionary less what was cut out across words of a script without spaces.

    Title ends are mined as things: "…单肩包通勤" (shoulder bag, commuting) gives "肩包通勤". Such a
    fragment is the end of one entry followed by another one that is no thing itself.
    """
    unspaced = [surface for surface in dictionary.entries if not joins(surface[-1])]
    ends = {surface[i:] for surface in unspaced for i in range(len(surface))}

    def is_fragment(surface: str) -> bool:
        return any(
            surface[:i] in ends
            and (after := dictionary.entries.get(surface[i:])) is not None
            and after.type is not AttributeType.ENTITY
            for i in range(1, len(surface))
        )

    fragments = {
        surface
        for surface in unspaced
        if dictionary.entries[surface].type is AttributeType.ENTITY and is_fragment(surface)
    }
    return AttributeDictionary(
        {
            surface: entry
            for surface, entry in dictionary.entries.items()
            if surface not in fragments
        }
    )


def _most_popular(snapshot: Snapshot) -> NDArray[np.int64]:
    n_items = len(snapshot.items)
    if n_items <= MAX_ITEMS:
        return np.arange(n_items)
    order = np.argsort(-snapshot.items.popularity, kind="stable")[:MAX_ITEMS]
    return np.sort(order)


def _concepts_of(
    table: pa.Table, matcher: AttributeMatcher, concepts: dict[Concept, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, concept number) of what titles and columns name; new concepts get the next number."""
    rows: list[int] = []
    numbers: list[int] = []
    seen: dict[str, tuple[int, ...]] = {}

    def numbers_in(text: str) -> tuple[int, ...]:
        found: list[int] = []
        for match in matcher.match(text):
            if match.type not in _NO_CONCEPT:
                concept = Concept(match.type, match.value)
                found.append(concepts.setdefault(concept, len(concepts)))
        return tuple(found)

    def add_values(values: Sequence[str | None], parents: Iterable[int]) -> None:
        for row, value in zip(parents, values, strict=True):
            if value:
                found = seen.get(value)
                if found is None:
                    found = seen[value] = numbers_in(value)
                numbers.extend(found)
                rows.extend([row] * len(found))

    for row, title in enumerate(table["title"].to_pylist()):
        found = numbers_in(title)
        numbers.extend(found)
        rows.extend([row] * len(found))
    if "brand" in table.column_names:
        add_values(table["brand"].to_pylist(), range(len(table)))
    for name in LIST_COLUMNS:
        if name in table.column_names:
            add_values(*_flat(table[name]))
    if "category" in table.column_names:
        leaves = [path[-1] if path else None for path in table["category"].to_pylist()]
        add_values(leaves, range(len(table)))
    if "attributes" in table.column_names:
        for row, pairs in enumerate(table["attributes"].to_pylist()):
            for key, values in pairs or ():
                if key.strip().casefold().replace("_", " ") in ATTRIBUTE_KEYS:
                    add_values(values or (), [row] * len(values or ()))
    return np.array(rows, np.int64), np.array(numbers, np.int64)


def _flat(column: pa.ChunkedArray) -> tuple[list[str | None], list[int]]:
    """Values of a list column and their rows."""
    values: list[str | None] = []
    rows: list[int] = []
    for row, listed in enumerate(column.to_pylist()):
        values += listed or ()
        rows += [row] * len(listed or ())
    return values, rows


def _paths_of(table: pa.Table) -> tuple[tuple[tuple[str, ...], ...], NDArray[np.int32]]:
    """Distinct category paths in normal form, and the number of each row's, -1 for none."""
    paths: dict[tuple[str, ...], int] = {}
    numbers = np.full(len(table), -1, np.int32)
    if "category" in table.column_names:
        for row, path in enumerate(table["category"].to_pylist()):
            if path:
                key = tuple(normalise(name) for name in path if name)
                numbers[row] = paths.setdefault(key, len(paths))
    return tuple(paths), numbers


def _count_pairs(
    first: NDArray[np.int64], second: NDArray[np.int64], n_first: int
) -> tuple[Runs, NDArray[np.int32]]:
    """Distinct (first, second) with second ≥ 0, and how often each occurs."""
    first, second = first[second >= 0], second[second >= 0]
    width = int(second.max()) + 1 if len(second) else 1
    pairs, counts = np.unique(first * width + second, return_counts=True)
    return Runs.of_pairs(*np.divmod(pairs, width), n_first), counts.astype(np.int32)


def _bigrams(texts: Sequence[str], vocabulary: Mapping[str, int]) -> NDArray[np.int64]:
    """Pairs of neighbouring words that MIN_BIGRAM_ITEMS texts have, as ascending keys."""
    flat: list[int] = []
    for text in texts:
        flat += [vocabulary.get(word, -1) for word in words(text)]
        flat.append(-1)
    tokens = np.array(flat, np.int64)
    both = (tokens[:-1] >= 0) & (tokens[1:] >= 0)
    keys, counts = np.unique(
        tokens[:-1][both] * len(vocabulary) + tokens[1:][both], return_counts=True
    )
    return keys[counts >= min(MIN_BIGRAM_ITEMS, max(len(texts) // 100, 1))]


def _other_words(entries: Mapping[str, Any], table: pa.Table) -> frozenset[str]:
    """Words that are spelt right though no title has them: of the dictionary, of descriptions."""
    found = {word for surface in entries if surface.isascii() for word in surface.split()}
    if "description" in table.column_names:
        counts = Counter[str]()
        for text in table["description"].to_pylist():
            if text:
                counts.update(set(_PLAIN_WORD.findall(text[:MAX_DESCRIPTION_CHARACTERS].lower())))
        found |= {word for word, count in counts.items() if count >= MIN_BIGRAM_ITEMS}
    return frozenset(found)
