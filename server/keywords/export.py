"""The stream of (query, keywords) that training reads, written as a Parquet file.

Redis keeps the newest `MADE_ENTRIES`; each answer is in the stream once, also when two workers made
it. One row an answer: `query`, `user_id` (null for generic ones), `terms`, `excluded`, `intents`,
`categories`, `merchandise`, what made it, and when.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from index import artifact
from index.errors import DataError
from server.keywords.keywords import Keywords, keywords_from_json
from server.redis.connection import RedisConnection
from server.redis.keys import Keys

BATCH = 1000
SCHEMA = pa.schema(
    {
        "query": pa.string(),
        "user_id": pa.string(),
        "terms": pa.list_(pa.string()),
        "excluded": pa.list_(pa.string()),
        "intents": pa.list_(pa.string()),
        "categories": pa.list_(pa.string()),
        "merchandise": pa.bool_(),
        "personalised": pa.bool_(),
        "generator": pa.string(),
        "model": pa.string(),
        "prompt_version": pa.string(),
        "catalogue_version": pa.string(),
        "created_s": pa.float64(),
    }
)


async def export(redis: RedisConnection, keys: Keys, path: Path) -> int:
    """Write the whole stream, oldest first, in one step: a reader sees the old file or the new one.

    Returns the number of rows. Raises RedisUnavailable; DataError when the file cannot be written.
    """
    rows = [row async for batch in _batches(redis, keys) for row in batch]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_file(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", path=path) from None
    return len(rows)


async def _batches(
    redis: RedisConnection, keys: Keys
) -> AsyncGenerator[list[dict[str, Any]], None]:
    after = "-"
    while True:
        found = await redis.command("XRANGE", keys.made, after, "+", "COUNT", BATCH)
        rows: list[dict[str, Any]] = []
        for _, fields in found:
            try:
                keywords = keywords_from_json(fields[b"keywords"])
            except DataError:
                # From a program of another format: not for this file.
                continue
            rows.append(row_of(keywords, fields[b"user"].decode()))
        yield rows
        if len(found) < BATCH:
            return
        after = f"({found[-1][0].decode()}"


def row_of(keywords: Keywords, user_id: str) -> dict[str, Any]:
    """Keywords as a row of SCHEMA; `user_id` "" for generic ones."""
    analysis, source = keywords.analysis, keywords.source
    return {
        "query": keywords.query,
        "user_id": user_id or None,
        "terms": list(keywords.terms),
        "excluded": list(keywords.excluded),
        "intents": [str(intent) for intent in analysis.intents],
        "categories": list(analysis.categories),
        "merchandise": analysis.merchandise,
        "personalised": keywords.personalised,
        "generator": source.generator,
        "model": source.model,
        "prompt_version": source.prompt_version,
        "catalogue_version": source.catalogue_version,
        "created_s": keywords.created_s,
    }
