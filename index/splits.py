"""Train, validation and test, by query; respellings of one query stay on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from index.text import words

SPLITS_NAMES = ("train", "validation", "test")
DEFAULT_SHARES = (0.8, 0.1, 0.1)


def split_queries(queries: Iterable[str], *, seed: int = 0) -> dict[str, str]:
    """query → split, stable by hash of the query's key."""
    result: dict[str, str] = {}
    for query in queries:
        key = " ".join(sorted(words(query)))
        digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()
        share = int.from_bytes(digest, "big") / 2**64
        position = 0 if share < DEFAULT_SHARES[0] else 1 if share < sum(DEFAULT_SHARES[:2]) else 2
        result[query] = SPLITS_NAMES[position]
    return result
