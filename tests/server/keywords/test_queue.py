"""The queue on real servers: once at the door, bounded, live first, nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from server.keywords.generator import NullGenerator
from server.keywords.jobs import Job, Priority, job_from_json, job_to_json
from server.keywords.keywords import KeywordRequest, keywords_to_json
from server.keywords.queue import (
    GROUP,
    MAX_DELIVERIES,
    SUSPECT_DELIVERIES,
    Dead,
    Done,
    Held,
    KeywordQueue,
)
from server.keywords.store import failure_to_json

VERSION = "v1"
WithRedis = Callable[..., Any]


def requests(*queries: str) -> list[KeywordRequest]:
    return [KeywordRequest(query) for query in queries]


def queries_of(jobs: Sequence[Held]) -> list[str]:
    return [held.job.request.query for held in jobs]


async def done(parts: Any, jobs: Sequence[Held]) -> list[bool]:
    """Finish jobs with what the null generator makes of them."""
    made = await NullGenerator().generate([held.job.request for held in jobs])
    return await parts.queue.finish(
        [
            Done(
                held,
                parts.keys.keywords(VERSION, held.job.request.normalised, held.job.request.user_id),
                keywords_to_json(keywords),
                60,
            )
            for held, keywords in zip(jobs, made, strict=True)
        ]
    )


def test_a_job_survives_json():
    job = Job.of(
        KeywordRequest("Red  Desk", "u", (("a", "b"),), ("q",), ("t",), "de"), Priority.LIVE, 1.5
    )
    again = job_from_json(job_to_json(job))
    assert again == job
    assert again.id == Job.of(KeywordRequest("red desk", "u"), Priority.WARM, 9.0).id
    assert again.id != Job.of(KeywordRequest("red desk"), Priority.LIVE, 1.5).id


def test_a_query_gets_in_once_until_it_is_done(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        queue = parts.queue
        spellings = requests("Desk", "desk ", "DESK", "lamp")
        assert await queue.enter(spellings, Priority.WARM, VERSION) == [
            *("queued", "duplicate", "duplicate", "queued")
        ]
        taken = (await queue.take(10)).jobs
        assert queries_of(taken) == ["Desk", "lamp"]
        # In hand it is still not let in again, and when it waits for its next attempt neither.
        assert await queue.enter(requests("desk"), Priority.LIVE, VERSION) == ["duplicate"]
        assert await queue.postpone(taken[0], 60)
        assert await queue.enter(requests("desk"), Priority.LIVE, VERSION) == ["duplicate"]
        assert await done(parts, taken[1:]) == [True]
        assert await queue.enter(requests("lamp"), Priority.LIVE, VERSION) == ["stored"]
        assert await queue.enter(requests("lamp"), Priority.LIVE, "v2") == ["queued"]

    with_redis(work)


def test_the_queue_is_bounded_and_keeps_room_for_searches(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        queue = parts.queue
        entered = await queue.enter(requests(*map(str, range(20))), Priority.WARM, VERSION)
        assert entered == ["queued"] * 9 + ["full"] * 11
        assert await queue.enter(requests("live a", "live b"), Priority.LIVE, None) == [
            *("queued", "full")
        ]
        taken = (await queue.take(3)).jobs
        assert await queue.enter(requests("live b"), Priority.LIVE, None) == ["full"]
        await done(parts, taken)
        assert await queue.enter(requests("live b"), Priority.LIVE, None) == ["queued"]
        assert (await queue.status()).jobs == 8

    with_redis(work, limit=10)


def test_live_jobs_come_first_and_a_missed_query_overtakes_its_own_warm_up(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        queue = parts.queue
        await queue.enter(requests("a", "b", "c"), Priority.WARM, VERSION)
        await queue.enter(requests("x", "c"), Priority.LIVE, VERSION)
        taken = (await queue.take(2)).jobs
        assert queries_of(taken) == ["x", "c"]
        assert queries_of((await queue.take(9)).jobs) == ["a", "b"]
        # One that is in hand stays there.
        assert await queue.enter(requests("a"), Priority.LIVE, VERSION) == ["duplicate"]
        assert not await queue.take(9)
        assert (await queue.status()).in_hand == 4

    with_redis(work)


def test_jobs_of_a_silent_worker_go_to_another_and_count_once(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        other = KeywordQueue(parts.redis, parts.keys, lease_s=0.3, consumer="other")
        await parts.queue.enter(requests("a", "b"), Priority.LIVE, VERSION)
        taken = (await parts.queue.take(5)).jobs
        assert not await other.take(5, reclaim=True)
        for _ in range(3):
            # Who is heard of keeps its jobs.
            await asyncio.sleep(0.15)
            assert await parts.queue.hold(taken) == 2
            assert not await other.take(5, reclaim=True)
        await asyncio.sleep(0.4)
        again = (await other.take(5, reclaim=True)).jobs
        assert queries_of(again) == ["a", "b"]
        assert [held.deliveries for held in again] == [2, 2]
        assert await parts.queue.hold(taken) == 0
        assert await done(parts, taken[:1]) == [True]
        assert await done(parts, again) == [False, True]
        status = await parts.queue.status()
        assert [status.jobs, status.in_hand, status.made] == [0, 0, 2]

    with_redis(work)


def test_a_job_that_may_kill_its_workers_is_handed_out_alone(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        await parts.queue.enter(requests("a", "b"), Priority.LIVE, VERSION)
        taken = (await parts.queue.take(5)).jobs
        for _ in range(SUSPECT_DELIVERIES - 1):
            await asyncio.sleep(0.12)
            taken = (await parts.queue.take(5, reclaim=True)).jobs
            assert queries_of(taken) == ["a", "b"]
        await asyncio.sleep(0.12)
        await parts.queue.enter(requests("c"), Priority.LIVE, VERSION)
        first = (await parts.queue.take(5, reclaim=True)).jobs
        assert queries_of(first) == ["a"]
        assert first[0].deliveries == SUSPECT_DELIVERIES + 1 < MAX_DELIVERIES
        assert queries_of((await parts.queue.take(5, reclaim=True)).jobs) == ["b"]
        assert queries_of((await parts.queue.take(5, reclaim=True)).jobs) == ["c"]

    with_redis(work, lease_s=0.1)


def test_postponed_jobs_come_back_with_one_more_failure(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        queue = parts.queue
        await queue.enter(requests("a"), Priority.WARM, VERSION)
        [held] = (await queue.take(1)).jobs
        assert await queue.postpone(held, 0.05)
        assert not await queue.postpone(held, 0.05)
        assert not await queue.take(1)
        assert (await queue.status()).postponed == 1
        await asyncio.sleep(0.1)
        [held] = (await queue.take(1)).jobs
        assert [held.job.attempt, held.job.priority] == [1, Priority.WARM]

    with_redis(work)


def test_dead_letters_are_kept_told_and_replayed(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        queue, dead = parts.queue, parts.dead
        await queue.enter(requests("a", "b", "c"), Priority.LIVE, VERSION)
        taken = (await queue.take(3)).jobs
        letters = [
            Dead(held, parts.keys.keywords(VERSION, name, None), "no", failure_to_json("no"))
            for held, name in zip(taken, "abc", strict=True)
        ]
        assert await queue.bury(letters) == [True] * 3
        assert await queue.bury(letters) == [False] * 3
        # A search does not bring them back.
        assert await queue.enter(requests("a"), Priority.LIVE, VERSION) == ["stored"]
        [stored] = await parts.store.read(VERSION, "a", (None,))
        assert [stored.keywords, stored.failure, stored.empty] == [None, "no", True]
        await queue.enter(requests("d"), Priority.LIVE, VERSION)
        newest = await dead.newest(2)
        assert [(one.job.request.query, one.reason) for one in newest] == [("c", "no"), ("b", "no")]
        counts = await dead.replay([newest[0].id, "1-1"], VERSION)
        assert [counts["queued"], counts["gone"]] == [1, 1]
        counts = await dead.replay(None, VERSION)
        assert [counts["queued"], counts["full"]] == [1, 1]
        assert [(one.job.request.query) for one in await dead.newest(9)] == ["b"]
        assert sorted(queries_of((await queue.take(9)).jobs)) == ["a", "c", "d"]

    with_redis(work, limit=3)


def test_a_foreign_entry_becomes_a_dead_letter(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        await parts.redis.command("XADD", parts.keys.live, "*", "job", b'{"id":"x","no":"job"}')
        await parts.redis.command("HSET", parts.keys.jobs, "x", "1:0-0")
        taken = await parts.queue.take(5)
        assert [len(taken.jobs), len(taken.unreadable)] == [0, 1]
        await parts.queue.discard(taken.unreadable[0])
        [letter] = await parts.dead.newest(5)
        assert letter.job is None
        assert "not a keyword job" in letter.reason
        assert (await parts.queue.status()).jobs == 0
        assert (await parts.dead.replay(None, VERSION))["unreadable"] == 1

    with_redis(work)


def test_waiting_ends_with_the_first_job(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        assert not await parts.queue.take(1)
        assert not await parts.queue.wait(0.05)
        waiting = asyncio.create_task(parts.queue.wait(0.9))
        await asyncio.sleep(0.1)
        await parts.queue.enter(requests("a"), Priority.WARM, VERSION)
        taken = await waiting
        assert queries_of(taken.jobs) == ["a"]
        await parts.redis.command("FLUSHALL")
        assert not await parts.queue.wait(0.05)
        assert not await parts.queue.take(1)

    with_redis(work)


def test_the_status_counts_what_is_where(with_redis: WithRedis):
    async def work(parts: Any) -> None:
        empty = await parts.queue.status()
        assert [empty.jobs, empty.waiting, empty.oldest_s[Priority.LIVE]] == [
            *(0, {Priority.LIVE: 0, Priority.WARM: 0}, 0)
        ]
        await parts.queue.enter(requests("a", "b", "c"), Priority.WARM, VERSION)
        await parts.queue.enter(requests("x"), Priority.LIVE, VERSION)
        await parts.queue.take(2)
        await asyncio.sleep(0.05)
        status = await parts.queue.status()
        assert status.waiting == {Priority.LIVE: 0, Priority.WARM: 2}
        assert [status.jobs, status.in_hand, status.postponed, status.dead] == [4, 2, 0, 0]
        assert 0.04 < status.oldest_s[Priority.LIVE] < 5
        ids = [Job.of(request, Priority.LIVE, 0).id for request in requests("a", "x", "none")]
        assert await parts.queue.unfinished(ids) == ids[:2]

    with_redis(work)


@pytest.mark.parametrize("count", [10_000])
def test_ten_thousand_with_duplicates_each_get_in_once(with_redis: WithRedis, count: int):
    async def work(parts: Any) -> None:
        log = requests(*(f"query {number * 7919 % 6000}" for number in range(count)))
        entered = await parts.queue.enter(log, Priority.WARM, VERSION)
        assert [entered.count("queued"), entered.count("duplicate")] == [6000, 4000]
        groups = await parts.redis.command("XLEN", parts.keys.warm)
        assert groups == 6000
        seen = set[str]()
        while taken := (await parts.queue.take(500)).jobs:
            fresh = set(queries_of(taken))
            assert len(fresh) == len(taken)
            assert not fresh & seen
            seen |= fresh
            await done(parts, taken)
        assert len(seen) == 6000
        assert await parts.redis.command("XPENDING", parts.keys.warm, GROUP)
        assert (await parts.queue.status()).jobs == 0
        # Nothing of a job that is done stays, but its answer.
        assert await parts.redis.command("XLEN", parts.keys.warm) == 0

    with_redis(work)
