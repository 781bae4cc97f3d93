"""Train, validation and test, by query; respellings of one query stay on one side.

A misspelt test query whose correct form was trained on measures memory, not search. So queries are
clustered first, and a cluster is assigned as a whole. Two queries share a cluster when, after
dropping function words, inch marks and plural endings,
- their words are the same in any order, each word replaced by the commonest spelling one edit away
  in the set ("steele stakes" = "stake steel"), or
- written without spaces they are equal or one letter apart ("deckover" = "deck over").
Digits are never edited: "2x4" and "2x6" are different wishes. Merging too much is harmless (the
cluster only moves as one); missing a respelling is a leak.

Work is linear in the characters: neighbours are found by deletion variants (words that share a
form with one letter left out are at most two edits apart), kept as 64-bit hashes and sorted.

On the imported Home Depot judgments (`onesearch data validate` prints it): 10,053 queries make
9,857 clusters; 182 clusters hold more than one query (378 together, at most 4 each); 0.3 s.

Invariants: the result does not depend on the order of the queries; a cluster is assigned by the
hash of its smallest query and the seed, so adding unrelated queries moves nobody.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from index.errors import ConfigError
from index.text import normalise

SPLIT_NAMES = ("train", "validation", "test")
DEFAULT_SHARES = (0.8, 0.1, 0.1)
MIN_EDITABLE_LETTERS = 4
MIN_JOINED_LETTERS = 7
MAX_JOINED_LETTERS = 48

# fmt: off
_IGNORED = frozenset((
    "a", "an", "and", "at", "by", "for", "from", "in", "inch", "inches", "into", "of", "on", "or",
    "the", "to", "with",
))
# fmt: on
_WORD = re.compile(r"\d+(?:[./]\d+)*|[a-zß-öø-ÿ]+|[^\W\d_a-zß-öø-ÿ]+")
_LETTERS = re.compile(r"[a-zß-öø-ÿ]")


def split_queries(
    queries: Iterable[str],
    *,
    shares: Sequence[float] = DEFAULT_SHARES,
    seed: int = 0,
) -> dict[str, str]:
    """query → "train" | "validation" | "test", for each distinct query, in first-seen order.

    `shares` are the expected shares of clusters in the order of SPLIT_NAMES. Raises ConfigError
    unless they are three numbers ≥ 0 that sum to 1.
    """
    if len(shares) != len(SPLIT_NAMES) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"split shares must be three numbers ≥ 0 with sum 1, not {shares}")
    distinct = list(dict.fromkeys(queries))
    result: dict[str, str] = dict.fromkeys(distinct, "")
    for cluster in cluster_queries(distinct):
        split = _draw(min(map(normalise, cluster)), shares, seed)
        for query in cluster:
            result[query] = split
    return result


def cluster_queries(queries: Iterable[str]) -> list[list[str]]:
    """Distinct queries grouped with their respellings; groups and members in first-seen order."""
    distinct = list(dict.fromkeys(queries))
    tokens = [_tokens(query) for query in distinct]
    counts = Counter(word for found in tokens for word in set(found))
    roots = _common_spellings(counts)
    groups = _Groups(len(distinct))
    first_with: dict[int, int] = {}
    owners: list[int] = []
    hashes: list[int] = []
    for number, found in enumerate(tokens):
        joined = "".join(found)
        spelt = {roots.get(word, word) for word in _compounds(found, counts)}
        for key in ("w " + " ".join(sorted(spelt)), "j " + joined):
            groups.join(number, first_with.setdefault(_hash(key), number))
        if MIN_JOINED_LETTERS <= len(joined) <= MAX_JOINED_LETTERS:
            variants = _variants(joined)
            owners.extend([number] * len(variants))
            hashes.extend(map(_hash, variants))
    for left, right in _equal_pairs(hashes, owners):
        groups.join(left, right)
    clusters: dict[int, list[str]] = defaultdict(list)
    for number, query in enumerate(distinct):
        clusters[groups.root(number)].append(query)
    return list(clusters.values())


def _tokens(query: str) -> list[str]:
    """Words without function words and plural endings; the bare query where nothing remains."""
    text = normalise(query).replace("'s", "")
    found = [_singular(word) for word in _WORD.findall(text) if word not in _IGNORED]
    return found or [text]


def _compounds(tokens: list[str], counts: Counter[str]) -> Iterable[str]:
    """Neighbouring words become one where the set also knows them as one: "under mount"."""
    position = 0
    while position < len(tokens):
        pair = "".join(tokens[position : position + 2])
        length = 2 if pair in counts and _LETTERS.match(pair) else 1
        yield "".join(tokens[position : position + length])
        position += length


def _singular(word: str) -> str:
    if len(word) <= 3 or not word.endswith("s") or word.endswith("ss"):
        return word
    return word[:-3] + "y" if word.endswith("ies") else word[:-1]


def _common_spellings(counts: Counter[str]) -> dict[str, str]:
    """word → the commonest word one letter away, followed to the end.

    A word points at a neighbour only if that one is commoner (ties: alphabetically smaller), so
    the pointers form a forest.
    """
    by_variant: dict[str, list[str]] = defaultdict(list)
    for word in sorted(counts):
        if len(word) >= MIN_EDITABLE_LETTERS and _LETTERS.match(word):
            for variant in _variants(word):
                by_variant[variant].append(word)
    parent: dict[str, str] = {}
    for neighbours in by_variant.values():
        best = min(neighbours, key=lambda word: (-counts[word], word))
        for word in neighbours:
            known = parent.get(word, word)
            parent[word] = min(best, known, key=lambda word: (-counts[word], word))
    return {word: _follow(parent, word) for word in parent}


def _follow(parent: dict[str, str], word: str) -> str:
    while parent[word] != word:
        word = parent[word]
    return word


def _variants(text: str) -> set[str]:
    """The text and each form with one letter left out; digits stay."""
    shorter = {text[: at.start()] + text[at.end() :] for at in _LETTERS.finditer(text)}
    return shorter | {text}


def _equal_pairs(hashes: list[int], owners: list[int]) -> Iterable[tuple[int, int]]:
    """Neighbouring owners of equal hashes: enough for a union."""
    values = np.array(hashes, np.uint64)
    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(values[order][1:] == values[order][:-1])
    owner = np.array(owners, np.int64)[order]
    return zip(owner[same].tolist(), owner[same + 1].tolist(), strict=True)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _draw(representative: str, shares: Sequence[float], seed: int) -> str:
    point = _hash(f"{seed} {representative}") / 2**64
    if point < shares[0]:
        return SPLIT_NAMES[0]
    return SPLIT_NAMES[1] if point < shares[0] + shares[1] else SPLIT_NAMES[2]


class _Groups:
    """Union-find with path halving; the smaller number is the root."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, member: int) -> int:
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def join(self, left: int, right: int) -> None:
        left, right = self.root(left), self.root(right)
        self._parent[max(left, right)] = min(left, right)
