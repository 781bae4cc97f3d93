"""Query logs and warming up; the export of what was made."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.errors import DataError
from server.keywords.export import export
from server.keywords.generator import NullGenerator
from server.keywords.jobs import Priority
from server.keywords.keywords import KeywordRequest, keywords_to_json
from server.keywords.queue import Done
from server.keywords.warm import WarmProgress, read_head, warm

WithRedis = Callable[..., Any]
QUERIES = ["Desk", "lamp", "desk ", "", "DESK", "lamp", "chair", "x" * 600]


def test_the_head_of_a_log_is_normalised_counted_and_sorted(tmp_path: Path):
    text, table, parquet = (tmp_path / f"log.{kind}" for kind in ("txt", "csv", "parquet"))
    text.write_text("\n".join(QUERIES))
    table.write_text("n,query\n" + "\n".join(f'{n},"{query}"' for n, query in enumerate(QUERIES)))
    pq.write_table(pa.table({"query": [*QUERIES[:-1], None, QUERIES[-1]]}), parquet)
    for path in (text, table, parquet):
        head = read_head(path)
        assert head.queries == ("desk", "lamp", "chair")
        assert [head.too_long, head.rows - head.empty] == [1, 7]
        assert read_head(path, most=2).queries == ("desk", "lamp")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        read_head(tmp_path / "none.txt")
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no column .query.*a, b.*--column"):
        read_head(tmp_path / "log.csv")
    assert read_head(tmp_path / "log.csv", "b").queries == ("2",)
    (tmp_path / "log.parquet").write_bytes(b"PAR?")
    with pytest.raises(DataError, match=r"log\.parquet"):
        read_head(tmp_path / "log.parquet")


def test_warming_up_stops_at_a_full_queue_or_waits_for_room(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        queries = [f"query {number}" for number in range(30)]
        shown: list[WarmProgress] = []

        async def go(wait: bool) -> WarmProgress:
            return await warm(
                *(parts.queue, queries, "v1"),
                wait_for_room=wait,
                wait_for_answers=wait,
                show=shown.append,
            )

        stopped = await go(False)
        assert [stopped.entered["queued"], stopped.entered["full"]] == [18, 12]
        waiting = asyncio.create_task(go(True))
        generator = NullGenerator()
        while not waiting.done():
            taken = (await parts.queue.take(7)).jobs
            made = await generator.generate([held.job.request for held in taken])
            await parts.queue.finish(
                [
                    Done(
                        held,
                        parts.keys.keywords("v1", held.job.request.query, None),
                        keywords_to_json(keywords),
                        60,
                    )
                    for held, keywords in zip(taken, made, strict=True)
                ]
            )
            await asyncio.sleep(0.02)
        finished = await waiting
        assert finished.unfinished == 0
        assert finished.offered == 30
        assert shown[-1] == finished
        again = await go(True)
        assert again.entered == {"queued": 0, "duplicate": 0, "stored": 30, "full": 0}

    with_redis(work, limit=20)


def test_what_was_made_is_exported_once_each(with_redis: WithRedis, tmp_path: Path):
    async def work(parts: Any) -> None:
        requests = [KeywordRequest(f"query {number}") for number in range(2500)]
        requests.append(KeywordRequest("query 0", "anna"))
        await parts.queue.enter(requests, Priority.LIVE, None)
        while taken := (await parts.queue.take(500)).jobs:
            made = await NullGenerator().generate([held.job.request for held in taken])
            done = [
                Done(held, f"key {held.job.id}", keywords_to_json(keywords), 60)
                for held, keywords in zip(taken, made, strict=True)
            ]
            # A second worker's answer changes nothing.
            assert all(await parts.queue.finish(done))
            assert not any(await parts.queue.finish(done))
        await parts.redis.command("XADD", parts.keys.made, "*", "keywords", "?", "user", "")
        file = tmp_path / "new" / "made.parquet"
        assert await export(parts.redis, parts.keys, file) == 2501
        rows = pq.read_table(file).to_pylist()
        assert [rows[0]["query"], rows[0]["user_id"], rows[0]["generator"]] == [
            *("query 0", None, "null")
        ]
        assert rows[2500]["user_id"] == "anna"
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="cannot be written"):
            await export(parts.redis, parts.keys, tmp_path / "file" / "made.parquet")

    with_redis(work)
