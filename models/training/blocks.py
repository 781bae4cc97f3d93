"""The two passes over a catalogue that can be spread over machines: texts → embeddings → codes.

Both work on *blocks*: the items of rows [b·BLOCK_ITEMS, (b+1)·BLOCK_ITEMS). An encoder that runs
texts in batches rounds differently in other company, so a block is always encoded as a whole and
alone, here (`OnThisMachine`) and on a cluster (`models.training.cluster`). Codes need no such care:
`index.codec.Codec.encode` gives every row its own. Results are laid down by row (`merged`), in
whatever order they come, and the trie is built from them as ever: so the same bytes come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from index.attributes import AttributeDictionary, AttributeMatcher
from index.codec import Codec
from index.encoder import TextEncoder, open_encoder
from index.errors import DataError
from index.fusion import fuse

BLOCK_ITEMS = 4096

FloatArray = NDArray[np.float32]
Codes = NDArray[np.int32]


class Embedding(NamedTuple):
    """How an item's text becomes its vector: see `index.fusion.fuse`."""

    encoder: TextEncoder
    attributes: AttributeDictionary
    keyword_fusion: float

    def save(self, directory: Path) -> None:
        """Write encoder and attributes, as a snapshot holds them."""
        self.encoder.save(directory / "encoder")
        self.attributes.save(directory / "attributes")

    @classmethod
    def open(cls, directory: Path, keyword_fusion: float) -> Embedding:
        """Raises ArtifactError when something is missing or damaged."""
        attributes = AttributeDictionary.open(directory / "attributes")
        return cls(open_encoder(directory / "encoder"), attributes, keyword_fusion)


class Passes(Protocol):
    """Who computes blocks, and where."""

    def embed(self, embedding: Embedding, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of the items' texts, float32 (N, d)."""
        ...

    def assign(self, codec: Codec, embeddings: FloatArray) -> Codes:
        """Codes of embeddings (N, d), int32 (N, L)."""
        ...


class OnThisMachine:
    """One block after the other."""

    def embed(self, embedding: Embedding, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of the items' texts, float32 (N, d)."""
        matcher = AttributeMatcher(embedding.attributes)
        found = (
            (part.start, embed_block(embedding, matcher, texts[part]))
            for part in blocks(len(texts))
        )
        return merged(found, len(texts), embedding.encoder.dimension, np.float32)

    def assign(self, codec: Codec, embeddings: FloatArray) -> Codes:
        """Codes of embeddings (N, d), int32 (N, L)."""
        return codec.encode(embeddings)


def blocks(count: int) -> list[slice]:
    """The rows of each block of `count` items, in order; the last one may be short."""
    starts = range(0, count, BLOCK_ITEMS)
    return [slice(start, min(start + BLOCK_ITEMS, count)) for start in starts]


def embed_block(
    embedding: Embedding, matcher: AttributeMatcher, texts: Sequence[str]
) -> FloatArray:
    """Unit vectors of one block, float32 (n, d). `matcher`: of the embedding's attributes."""
    return fuse(embedding.encoder, matcher, texts, embedding.keyword_fusion)


def merged(
    parts: Iterable[tuple[int, NDArray[Any]]], count: int, width: int, dtype: type[np.generic]
) -> NDArray[Any]:
    """Parts (first row, array (n, width)) laid down by row, in any order: (count, width).

    Raises DataError unless each row of `count` comes exactly once: a part that was lost, or that
    came twice because its machine was thought to be dead.
    """
    whole = np.empty((count, width), dtype)
    times = np.zeros(count, np.int64)
    for first, part in parts:
        end = first + len(part)
        if not 0 <= first <= end <= count or part.shape[1] != width:
            raise DataError(
                f"a part of shape {part.shape} for the rows from {first} does not fit "
                f"{count} rows of width {width}; build again"
            )
        whole[first:end] = part
        times[first:end] += 1
    if count and (times != 1).any():
        row = int(np.flatnonzero(times != 1)[0])
        raise DataError(f"row {row} of {count} was computed {times[row]} times; build again")
    return whole
