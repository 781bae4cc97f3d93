"""The retrieval teacher: for a query, which items (and so which SIDs) should be generated.

    s(q, i)  = ⟨e_q, e_i⟩ + γ · BM25(q, i) / max_j BM25(q, j)      over the exact dense top T
    w(q, i)  = softmax_i(κ · s),  mixed with what is known: the item a pseudo-query was sampled
               from, or the judged / clicked / ordered items of a real query

So the decoder is distilled from exact hybrid search over very many pseudo-queries, and what people
did outweighs it wherever it is known. Source: ../QUALITY "what makes a learned router earn its
place"; γ, κ and the mixing share are measured choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
DEPTH = 128
SHARPNESS = 20.0
LEXICAL_WEIGHT = 0.3
KNOWN_SHARE = 0.5
_BLOCK = 1024


class Lexical(Protocol):
    """What the teacher needs of the lexical index."""

    def scores(self, query: str, rows: IntArray) -> FloatArray: ...


class Taught(NamedTuple):
    """Item rows int64 (N, T) and weights float32 (N, T), each row's weights summing to 1."""

    rows: IntArray
    weights: FloatArray


class Teaches(Protocol):
    """Targets of queries. `wants_pairs`: whether it is to be told which items people want for a
    training query; who has learned from all pairs already is not."""

    @property
    def wants_pairs(self) -> bool: ...

    def teach(
        self,
        queries: Sequence[str],
        embeddings: FloatArray,
        known: Sequence[Sequence[tuple[int, float]]],
    ) -> Taught: ...


class DenseTop:
    """Exact search over item embeddings (n, d) in bfloat16."""

    def __init__(self, embeddings: FloatArray, depth: int) -> None:
        self._items = torch.from_numpy(np.ascontiguousarray(embeddings, np.float32)).bfloat16().T
        self._depth = min(depth, len(embeddings))

    def search(self, embeddings: FloatArray) -> tuple[IntArray, FloatArray]:
        """Rows and similarities of the best of each query, both (N, T)."""
        found_rows: list[IntArray] = []
        found_scores: list[FloatArray] = []
        queries = torch.from_numpy(np.ascontiguousarray(embeddings, np.float32)).bfloat16()
        with torch.inference_mode():
            for block in queries.split(_BLOCK):
                scores, rows = (block @ self._items).topk(self._depth, dim=1)
                found_rows.append(rows.numpy())
                found_scores.append(scores.float().numpy())
        return np.concatenate(found_rows), np.concatenate(found_scores)


class Teacher:
    """Exact search over item embeddings (n, d), mixed with BM25."""

    wants_pairs = True

    def __init__(
        self,
        embeddings: FloatArray,
        lexical: Lexical | None,
        *,
        depth: int = DEPTH,
        sharpness: float = SHARPNESS,
        lexical_weight: float = LEXICAL_WEIGHT,
    ) -> None:
        self._dense = DenseTop(embeddings, depth)
        self._lexical = lexical
        self._sharpness = sharpness
        self._lexical_weight = lexical_weight if lexical is not None else 0.0

    def teach(
        self,
        queries: Sequence[str],
        embeddings: FloatArray,
        known: Sequence[Sequence[tuple[int, float]]],
    ) -> Taught:
        """Targets of each query. `known[i]`: (item row, positive weight) pairs, may be empty."""
        rows, similarity = self._dense.search(embeddings)
        score = similarity
        if self._lexical is not None and self._lexical_weight > 0:
            lexical = np.stack(
                [self._lexical.scores(query, rows[i]) for i, query in enumerate(queries)]
            )
            peak = np.maximum(lexical.max(axis=1, keepdims=True), 1e-6)
            score = similarity + self._lexical_weight * lexical / peak
        weights = softmax(self._sharpness * score)
        return mix_known(rows, weights, known, KNOWN_SHARE)


def softmax(scores: FloatArray) -> FloatArray:
    """Of each row of scores (N, T), float32."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)


def mix_known(
    rows: IntArray,
    weights: FloatArray,
    known: Sequence[Sequence[tuple[int, float]]],
    known_share: float,
) -> Taught:
    """Append the known items as further columns holding `known_share` of the weight."""
    width = max((len(pairs) for pairs in known), default=0)
    if width == 0:
        return Taught(rows, weights)
    known_rows = np.zeros((len(rows), width), np.int64)
    known_weights = np.zeros((len(rows), width), np.float32)
    for i, pairs in enumerate(known):
        for j, (row, weight) in enumerate(pairs):
            known_rows[i, j] = row
            known_weights[i, j] = weight
    total = known_weights.sum(axis=1, keepdims=True)
    share = np.where(total > 0, known_share, 0.0).astype(np.float32)
    known_weights *= share / np.maximum(total, 1e-12)
    return Taught(
        np.concatenate([rows, known_rows], axis=1),
        np.concatenate([weights * (1 - share), known_weights], axis=1),
    )
