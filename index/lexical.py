"""BM25 over item texts, with product tokens (`index.text.words`).

    score(q, i) = Σ_t idf(t) · f / (f + k1·(1 − b + b·length_i / mean length))
    idf(t) = ln(1 + (N − n_t + ½) / (n_t + ½))

with f = occurrences of token t in item i, n_t = items that have t: Lucene's form. A token that the
query repeats counts each time. Beside it there is

    coverage(q, i) = Σ_t idf(t) · max_{t' in i} similarity(t, t') / Σ_t idf(t)   in [0, 1]

over the query's distinct tokens: how much of the query the item's text has, near spellings counted
in part (`index.spelling`); a token that no item has weighs as one that is rarer than any. Every
addend is computed at build time and stored by token, rows ascending, so a search adds a few runs of
numbers and scoring given rows looks each of them up by binary search.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from numba import njit
from numpy.typing import NDArray

from index.arrays import open_array, save_arrays
from index.errors import ArtifactError, ConfigError
from index.ranking import best_rows
from index.spelling import Spellings
from index.text import words

# Tuned on product titles, where neither repetition nor length says much.
DEFAULT_K1 = 0.8
DEFAULT_B = 0.4
_FACTS = "lexical.json"
_VOCABULARY = "vocabulary.json"


@dataclass(frozen=True, slots=True, eq=False)
class LexicalIndex:
    """Addends of token t: rows[start[t]:start[t + 1]] (ascending) with impacts alongside.

    `start`: int64 (T + 1,), `rows`: uint32 (P,), `impacts`: float32 (P,), `idf`: float32 (T,),
    `lengths`: uint32 (n_items,), tokens of each item; None in an index that was written without.
    """

    n_items: int
    k1: float
    b: float
    vocabulary: Mapping[str, int]
    start: NDArray[np.int64]
    rows: NDArray[np.uint32]
    impacts: NDArray[np.float32]
    idf: NDArray[np.float32]
    lengths: NDArray[np.uint32] | None = None
    _spellings: list[Spellings] = field(default_factory=list[Spellings])
    """One, once it was needed."""

    @classmethod
    def build(
        cls, texts: Iterable[str], *, k1: float = DEFAULT_K1, b: float = DEFAULT_B
    ) -> LexicalIndex:
        """Index texts, row by row. Raises ConfigError unless k1 ≥ 0 and 0 ≤ b ≤ 1."""
        if k1 < 0 or not 0 <= b <= 1:
            raise ConfigError(f"BM25 needs k1 >= 0 and 0 <= b <= 1, got k1={k1}, b={b}")
        vocabulary: dict[str, int] = {}
        flat, length_list = array("I"), array("I")
        for text in texts:
            tokens = words(text)
            length_list.append(len(tokens))
            flat.extend([vocabulary.setdefault(token, len(vocabulary)) for token in tokens])
        n_items = len(length_list)
        lengths = np.array(length_list, dtype=np.int64)
        occurrence = np.array(flat, dtype=np.int64) * max(n_items, 1)
        occurrence += np.repeat(np.arange(n_items), lengths)
        pairs, frequency = np.unique(occurrence, return_counts=True)
        token, row = np.divmod(pairs, max(n_items, 1))
        return cls.from_frequencies(vocabulary, token, row, frequency, lengths, k1=k1, b=b)

    @classmethod
    def from_frequencies(
        cls,
        vocabulary: Mapping[str, int],
        token: NDArray[np.int64],
        row: NDArray[np.int64],
        frequency: NDArray[np.int64],
        lengths: NDArray[np.int64],
        *,
        k1: float,
        b: float,
    ) -> LexicalIndex:
        """From how often tokens occur: `token`, `row`, `frequency` (P,), ordered by token, then by
        row, no pair twice; `lengths` (n_items,)."""
        n_items = len(lengths)
        n_rows = np.bincount(token, minlength=len(vocabulary))
        start = np.concatenate([[0], np.cumsum(n_rows)]).astype(np.int64)
        idf = inverse_frequency(n_items, n_rows)
        norm = length_norm(lengths, float(lengths.mean()) if n_items else 0.0, k1, b)
        impacts = idf[token] * frequency / (frequency + norm[row])
        return cls(
            n_items,
            k1,
            b,
            vocabulary,
            start,
            row.astype(np.uint32),
            impacts.astype(np.float32),
            idf.astype(np.float32),
            lengths.astype(np.uint32),
        )

    def save(self, directory: Path) -> None:
        arrays: dict[str, NDArray[Any]] = {
            "start": self.start,
            "rows": self.rows,
            "impacts": self.impacts,
            "idf": self.idf,
        }
        if self.lengths is not None:
            arrays["lengths"] = self.lengths
        save_arrays(directory, arrays)
        facts = {"n_items": self.n_items, "k1": self.k1, "b": self.b}
        (directory / _FACTS).write_bytes(orjson.dumps(facts))
        (directory / _VOCABULARY).write_bytes(orjson.dumps(list(self.vocabulary)))

    @classmethod
    def open(cls, directory: Path) -> LexicalIndex:
        """Memory-map a saved index. Raises ArtifactError when files are missing or disagree."""
        directory = Path(directory)
        try:
            facts = cast(dict[str, Any], orjson.loads((directory / _FACTS).read_bytes()))
            tokens = cast(list[str], orjson.loads((directory / _VOCABULARY).read_bytes()))
        except (OSError, orjson.JSONDecodeError) as error:
            raise ArtifactError(f"{directory} is no lexical index: {error}") from None
        start, rows, impacts, idf = (
            open_array(directory / f"{name}.npy") for name in ("start", "rows", "impacts", "idf")
        )
        path = directory / "lengths.npy"
        lengths = open_array(path) if path.exists() else None
        if not (len(tokens) == len(idf) == len(start) - 1 and len(rows) == len(impacts)):
            raise ArtifactError(f"the arrays of {directory} disagree; build the index again")
        vocabulary = {token: number for number, token in enumerate(tokens)}
        n_items, k1, b = int(facts["n_items"]), float(facts["k1"]), float(facts["b"])
        return cls(n_items, k1, b, vocabulary, start, rows, impacts, idf, lengths)

    def score_all(self, query: str) -> NDArray[np.float32]:
        """Scores of all items, float32 (n_items,); 0 where no token is shared."""
        scores = np.zeros(self.n_items, dtype=np.float32)
        for token in self._tokens(query):
            run = slice(self.start[token], self.start[token + 1])
            scores[self.rows[run]] += self.impacts[run]
        return scores

    def scores(self, query: str, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Scores of the given items only, float32 (len(rows),)."""
        wanted = np.asarray(rows).astype(np.uint32)
        scores = np.zeros(len(wanted), dtype=np.float32)
        for token in self._tokens(query):
            run = slice(self.start[token], self.start[token + 1])
            found = np.searchsorted(self.rows[run], wanted)
            np.minimum(found, run.stop - run.start - 1, out=found)
            scores += np.where(self.rows[run][found] == wanted, self.impacts[run][found], 0)
        return scores

    @property
    def spellings(self) -> Spellings:
        """The vocabulary by how it is spelled; made at first use."""
        if not self._spellings:
            self._spellings.append(Spellings.of(list(self.vocabulary)))
        return self._spellings[0]

    def coverage(self, query: str, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Share of the query's tokens that the given items have, float32 (len(rows),), 0 to 1."""
        tokens = list(dict.fromkeys(words(query)))
        weights = [self.token_weight(token) for token in tokens]
        covered = np.zeros(len(rows), dtype=np.float32)
        for token, weight in zip(tokens, weights, strict=True):
            covered += weight * self.best_similarity(token, rows)
        return covered / np.float32(sum(weights) or 1.0)

    def token_weight(self, token: str) -> float:
        """idf of a token, known or not."""
        number = self.vocabulary.get(token)
        if number is None:
            return float(inverse_frequency(self.n_items, np.zeros(1, dtype=np.int64))[0])
        return float(self.idf[number])

    def near(self, token: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Numbers of the known tokens like this one, itself included, and how similar they are."""
        numbers, similarity = self.spellings.near(token)
        own = self.vocabulary.get(token)
        if own is not None and own not in numbers:
            # A word with a digit is near to itself only, which the spellings do not say.
            numbers = np.append(numbers, own)
            similarity = np.append(similarity, np.float32(1.0))
        return numbers, similarity

    def best_similarity(self, token: str, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """How similar the most similar token of the given items is, float32 (len(rows),)."""
        wanted = np.asarray(rows).astype(np.uint32)
        best = np.zeros(len(wanted), dtype=np.float32)
        _raise_to_similarity(self.start, self.rows, *self.near(token), wanted, best)
        return best

    def search(
        self, query: str, k: int, mask: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best items that share a token with the query, best first, ties by row.

        `mask`: bool (n_items,), rows that may be found. Returns rows int64 and scores float32.
        """
        scores = self.score_all(query)
        if mask is not None:
            if mask.shape != (self.n_items,):
                raise ConfigError(f"expected a mask of {self.n_items} items, got {mask.shape}")
            scores *= mask
        # Few items share a token: ranking only those is several times faster than all scores.
        hits = np.flatnonzero(scores)
        rows = hits[best_rows(scores[hits], k)]
        return rows, scores[rows]

    def rows_with_all(self, tokens: Sequence[str]) -> NDArray[np.int64]:
        """Rows of the items that have every one of the tokens, ascending, int64 (n,)."""
        numbers = [self.vocabulary.get(token, -1) for token in tokens]
        if not numbers or min(numbers) < 0:
            return np.empty(0, dtype=np.int64)
        runs = sorted((self.rows[self.start[n] : self.start[n + 1]] for n in numbers), key=len)
        found = runs[0]
        for run in runs[1:]:
            found = found[np.isin(found, run, assume_unique=True)]
        return found.astype(np.int64)

    def upper_bound(self, query: str) -> float:
        """Σ idf of the query's tokens: no item can score more. 0 if no token is known."""
        return float(self.idf[self._tokens(query)].sum())

    def frequencies(self) -> NDArray[np.int64]:
        """How often token t occurs in item rows[p], int64 (P,); needs `lengths`.

        An impact is idf · f / (f + norm), and norm depends on the item's length only.
        """
        assert self.lengths is not None
        if self.k1 == 0:
            return np.ones(len(self.rows), dtype=np.int64)
        mean = float(self.lengths.mean()) if self.n_items else 0.0
        norm = length_norm(self.lengths, mean, self.k1, self.b)
        share = self.impacts / np.repeat(self.idf, np.diff(self.start)).astype(np.float64)
        return np.rint(share * norm[self.rows] / (1 - share)).astype(np.int64)

    def _tokens(self, query: str) -> list[int]:
        known = self.vocabulary
        return [known[token] for token in words(query) if token in known]


def inverse_frequency(n_items: int, n_rows: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """idf of tokens that n_rows (T,) of n_items have, float64 (T,)."""
    return np.log1p((n_items - n_rows + 0.5) / (n_rows + 0.5))


def length_norm(
    lengths: NDArray[np.integer[Any]], mean: float, k1: float, b: float
) -> NDArray[np.float64]:
    """k1·(1 − b + b·length / mean length), float64 (n,)."""
    return k1 * (1 - b + b * lengths.astype(np.float64) / max(mean, 1e-9))


@njit(cache=True, nogil=True)
def _raise_to_similarity(
    start: NDArray[np.int64],
    rows: NDArray[np.uint32],
    numbers: NDArray[np.int64],
    similarity: NDArray[np.float32],
    wanted: NDArray[np.uint32],
    best: NDArray[np.float32],
) -> None:
    """Raise `best` of each wanted row to the similarity of each numbered token that it has."""
    for place in range(len(numbers)):
        first, end = start[numbers[place]], start[numbers[place] + 1]
        for number in range(len(wanted)):
            if best[number] >= similarity[place]:
                continue
            low, high = first, end
            while low < high:
                middle = (low + high) >> 1
                if rows[middle] < wanted[number]:
                    low = middle + 1
                else:
                    high = middle
            if low < end and rows[low] == wanted[number]:
                best[number] = similarity[place]
