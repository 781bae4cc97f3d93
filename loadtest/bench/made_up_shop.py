"""Snapshots of made-up catalogues for timing: any size, in seconds, without learning anything.

Titles are drawn from a fixed vocabulary (common words are common), brands, colors, categories,
prices and stock from simple laws. Embeddings are random unit vectors, SIDs random ones of the
layout, so a SID has one item mostly. Items that are added later get theirs from encoder and codec.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.attributes import AttributeDictionary
from index.codec import Codec
from index.encoder import StaticEncoder, unit_rows
from index.sid import SidLayout
from index.snapshot import Snapshot
from loadtest.bench.catalogues import random_keys

DIMENSION = 64
BUCKETS = 1 << 14
WORDS = 5_000
BRANDS = 2_000
CATEGORIES = 400
COLORS = 12
TITLE_WORDS = 5
OUT_OF_STOCK_SHARE = 0.1


def write_shop(path: Path, count: int, layout: SidLayout, seed: int = 7) -> Snapshot:
    """Write a snapshot of `count` items with as many SIDs, and open it."""
    random = np.random.default_rng(seed)
    encoder = StaticEncoder.from_table(
        random.standard_normal((BUCKETS, DIMENSION)).astype(np.float32),
        np.arange(BUCKETS, dtype=np.int32),
    )
    centroids = tuple(
        unit_rows(random.standard_normal((size, DIMENSION)).astype(np.float32)) / 2**level
        for level, size in enumerate(layout.level_sizes)
    )
    keys = random_keys(layout, count, seed=seed)
    embeddings = unit_rows(random.standard_normal((count, DIMENSION)).astype(np.float32))
    Snapshot.write(
        path,
        items=_items(count, random),
        encoder=encoder,
        attributes=AttributeDictionary({}),
        codec=Codec(layout, centroids, ("rq",) * layout.levels),
        codes=layout.unpack(random.permutation(keys)),
        embeddings=embeddings,
        report={},
        keyword_fusion=0.0,
        simulated=True,
    )
    return Snapshot.open(path, verify=False)


def made_up_item(number: int, random: np.random.Generator) -> dict[str, Any]:
    """An item that the catalogue does not have yet."""
    words = _popular(WORDS, TITLE_WORDS, random).tolist()
    return {
        "item_id": f"new{number}",
        "title": " ".join(f"{_word(word)}" for word in words),
        "brand": f"brand {random.integers(BRANDS)}",
        "category": [f"category {random.integers(CATEGORIES)}"],
        "color": [f"color {random.integers(COLORS)}"],
        "price": float(random.integers(1, 1000)),
        "stock": int(random.integers(0, 50)),
        "popularity": float(random.integers(0, 100)),
    }


def made_up_query(random: np.random.Generator) -> str:
    """Three words of the vocabulary."""
    return " ".join(map(_word, _popular(WORDS, 3, random).tolist()))


def _items(count: int, random: np.random.Generator) -> pa.Table:
    names = [_word(number) for number in range(WORDS)]
    chosen = _popular(WORDS, count * TITLE_WORDS, random).reshape(count, TITLE_WORDS).tolist()
    stock = random.integers(1, 50, count)
    stock[random.random(count) < OUT_OF_STOCK_SHARE] = 0
    return pa.table(
        {
            "item_id": [f"item{number}" for number in range(count)],
            "title": [" ".join([names[word] for word in title]) for title in chosen],
            "brand": _drawn("brand", _popular(BRANDS, count, random)),
            "category": _one_each(_drawn("category", random.integers(0, CATEGORIES, count))),
            "color": _one_each(_drawn("color", random.integers(0, COLORS, count))),
            "price": np.exp(random.normal(3.5, 1.0, count)).round(2),
            "stock": stock,
            "popularity": random.integers(0, 100, count).astype(np.float64),
        }
    )


def _drawn(name: str, numbers: NDArray[np.int64]) -> pa.Array:
    values = pa.array([f"{name} {number}" for number in range(int(numbers.max()) + 1)])
    return values.take(pa.array(numbers))


def _one_each(values: pa.Array) -> pa.Array:
    """Lists of one value."""
    return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1, dtype=np.int32)), values)


def _popular(most: int, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Numbers below `most`, small ones often: number n with weight 1 / (n + 10)."""
    weights = np.cumsum(1.0 / np.arange(10, most + 10))
    return np.searchsorted(weights, random.random(count) * weights[-1])


def _word(number: int) -> str:
    """A made-up word of letters."""
    letters = "bcdfghjklmnprtvz"
    vowels = "aeiou"
    word = ""
    for _ in range(3):
        number, first = divmod(number, len(letters))
        number, second = divmod(number, len(vowels))
        word += letters[first] + vowels[second]
    return word
