"""The teacher of a catalogue whose users are unknown: a ranking of retrieved items.

    s(q, i)  = 7.1·⟨e_q, e_i⟩ + 0.56·BM25(q, i) / bound + 6.6·coverage(q, i) + 0.8·QL(q, i)
    w(q, i)  = softmax_i(1.5·s)      over the dense top 128 and BM25's top 64

The first three are features of the served ranking with weights as fitted there (coverage counts
exact words only), QL is the query likelihood of training pairs (`models.training.likelihood`). The
item that a pseudo-query was sampled from has KNOWN_SHARE of the weight. Pairs of training queries
are not told beside it: where few products are judged, and each for few queries, learning them by
heart makes a decoder prefer products that were judged before, which other queries do not want.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.lexical import LexicalIndex
from index.text import words
from models.training.likelihood import QueryLikelihood
from models.training.teacher import DEPTH, DenseTop, Taught, mix_known, softmax

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
LEXICAL_DEPTH = 64
SHARPNESS = 1.5
DENSE, LEXICAL, WORDS, LIKELIHOOD = 7.1, 0.56, 6.6, 0.8
KNOWN_SHARE = 0.15
_NOT_FOUND = -1e4


class RankingTeacher:
    """Ranks the dense and lexical top of a catalogue with item embeddings (n, d)."""

    wants_pairs = False

    def __init__(
        self, embeddings: FloatArray, lexical: LexicalIndex, likelihood: QueryLikelihood
    ) -> None:
        self._embeddings = embeddings
        self._dense = DenseTop(embeddings, DEPTH)
        self._lexical = lexical
        self._likelihood = likelihood

    def teach(
        self,
        queries: Sequence[str],
        embeddings: FloatArray,
        known: Sequence[Sequence[tuple[int, float]]],
    ) -> Taught:
        """Targets of each query. `known[i]`: (item row, positive weight) pairs, may be empty."""
        dense, similarity = self._dense.search(embeddings)
        shape = (len(queries), dense.shape[1] + LEXICAL_DEPTH)
        rows, scores = np.zeros(shape, np.int64), np.full(shape, _NOT_FOUND, np.float32)
        for i, query in enumerate(queries):
            further = self._lexical.search(query, LEXICAL_DEPTH)[0]
            further = further[~np.isin(further, dense[i])]
            found = np.concatenate([dense[i], further])
            alike = np.concatenate([similarity[i], self._embeddings[further] @ embeddings[i]])
            rows[i, : len(found)] = found
            scores[i, : len(found)] = DENSE * alike + self._by_words(query, found)
        return mix_known(rows, softmax(SHARPNESS * scores), known, KNOWN_SHARE)

    def _by_words(self, query: str, rows: IntArray) -> FloatArray:
        """What the query's words say of item rows (n,), float32 (n,)."""
        lexical, likelihood = self._lexical, self._likelihood.scores(query, rows)
        bound = max(lexical.upper_bound(query), 1e-6)
        exact = _coverage(lexical, query, rows)
        plain = np.float32(LEXICAL / bound) * lexical.scores(query, rows)
        weighed = np.float32(WORDS) * exact + np.float32(LIKELIHOOD) * likelihood
        return (plain + weighed).astype(np.float32)


def _coverage(lexical: LexicalIndex, query: str, rows: IntArray) -> FloatArray:
    """`LexicalIndex.coverage` without near spellings, float32 (n,)."""
    covered, total, wanted = np.zeros(len(rows), np.float32), 0.0, rows.astype(np.uint32)
    for token in dict.fromkeys(words(query)):
        weight = lexical.token_weight(token)
        total += weight
        if (number := lexical.vocabulary.get(token)) is None:
            continue
        run = lexical.rows[lexical.start[number] : lexical.start[number + 1]]
        if len(run):
            place = np.minimum(np.searchsorted(run, wanted), len(run) - 1)
            covered += np.float32(weight) * (run[place] == wanted)
    return covered / np.float32(total or 1.0)
