"""Keyword-enhanced embeddings (KHQE): normalise((1−w)·e + w·mean(e_k)); no keyword: e.

e is the text's embedding, e_k those of its matched attribute values. Source: METHOD §2, published
w = 0.5. How much it helps depends on the encoder: with our static two-tower, which already learned
which words matter, it costs recall (docs/quality.md), so 0 is the default there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.attributes import AttributeMatcher
from index.encoder import TextEncoder, unit_rows

PUBLISHED_WEIGHT = 0.5


def fuse(
    encoder: TextEncoder, matcher: AttributeMatcher, texts: Sequence[str], weight: float
) -> NDArray[np.float32]:
    """Fused embeddings of texts, float32 (N, d), norm 1 (0 for a text without features)."""
    embeddings = encoder.encode(texts)
    if weight == 0 or not texts:
        return embeddings
    keywords = [matcher.keywords(text) for text in texts]
    distinct = sorted({keyword for found in keywords for keyword in found})
    if not distinct:
        return embeddings
    vectors = encoder.encode(distinct)
    place = {keyword: i for i, keyword in enumerate(distinct)}
    for i, found in enumerate(keywords):
        if found:
            mean = vectors[[place[keyword] for keyword in found]].mean(axis=0)
            embeddings[i] = (1 - weight) * embeddings[i] + weight * mean
    return unit_rows(embeddings)
