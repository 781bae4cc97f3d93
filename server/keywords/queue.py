"""The queue of keyword jobs, in Redis streams.

At least once: a job stays in Redis until its answer is stored, and is handed out again when its
worker has not been heard of for `lease_s`. Once at the door: a query that waits, is worked on or
waits for its next attempt is not let in again. Bounded: past `limit` jobs nobody gets in; warming
up stops before, so that searches find room. Live jobs are handed out before warm ones.

Every step is one script (`server/redis/scripts.py`) and one round trip.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import orjson

from index.errors import DataError
from server.keywords.jobs import Job, Priority, job_from_json, job_to_json
from server.keywords.keywords import KeywordRequest
from server.redis import scripts
from server.redis.connection import Argument, RedisConnection, Refused
from server.redis.keys import DEAD_ENTRIES, FAILED_TTL_S, MADE_ENTRIES, Keys

Entry = Literal["queued", "duplicate", "stored", "full"]
ENTRIES: tuple[Entry, ...] = get_args(Entry)
GROUP = "workers"
DEFAULT_LIMIT = 100_000
WARM_SHARE = 0.9
"""Of the limit: the rest is for searches."""
DOOR_BATCH = 500
LEASE_S = 15.0
SUSPECT_DELIVERIES = 3
"""A job that was handed out that often is handed out alone."""
MAX_DELIVERIES = 8
"""A job whose workers died that often is a dead letter."""


@dataclass(frozen=True, slots=True)
class Held:
    """A job in a worker's hands. `deliveries`: how often it was handed out, this time included."""

    job: Job
    place: int
    entry: bytes
    deliveries: int = 1


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An entry that holds no job, with the reason."""

    payload: bytes
    place: int
    entry: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Taken:
    """What was handed out."""

    jobs: tuple[Held, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.jobs or self.unreadable)


@dataclass(frozen=True, slots=True)
class Done:
    """An answer for the store: JSON, and how long it is kept."""

    held: Held
    store_key: str
    value: bytes
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Dead:
    """A job that cannot be done, and what the store says of it until somebody asks again."""

    held: Held
    store_key: str
    reason: str
    value: bytes


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The queue in numbers. `jobs` is all that is not done: waiting, in hand, postponed.

    `oldest_s`: how long ago the oldest job of each priority came, 0 without one.
    """

    jobs: int
    postponed: int
    dead: int
    made: int
    waiting: dict[Priority, int]
    in_hand: int
    oldest_s: dict[Priority, float]


class KeywordQueue:
    """The queue under one prefix; `consumer` names a worker process and is needed to take jobs."""

    def __init__(
        self,
        redis: RedisConnection,
        keys: Keys,
        *,
        limit: int = DEFAULT_LIMIT,
        lease_s: float = LEASE_S,
        consumer: str = "",
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._limit = limit
        self._lease_ms = max(1, round(lease_s * 1000))
        self._consumer = consumer
        self._streams = (keys.live, keys.warm)

    async def enter(
        self,
        requests: Sequence[KeywordRequest],
        priority: Priority,
        version: str | None,
        traceparent: str | None = None,
    ) -> list[Entry]:
        """Let jobs in; what became of each. With a `version` those whose answer is stored stay out.
        `traceparent`: of what they are for.

        Raises RedisUnavailable; jobs of earlier batches are in then.
        """
        limit = self._limit if priority is Priority.LIVE else int(self._limit * WARM_SHARE)
        now = time.time()
        answers: list[Entry] = []
        for start in range(0, len(requests), DOOR_BATCH):
            jobs = [
                Job.of(request, priority, now, traceparent)
                for request in requests[start : start + DOOR_BATCH]
            ]
            keys = [self._keys.jobs, *self._streams]
            arguments: list[Argument] = [GROUP, priority.place, max(1, limit)]
            for job in jobs:
                keys.append("" if version is None else self._store_key(version, job))
                arguments += (job.id, job_to_json(job))
            found = await self._redis.script(scripts.DOOR, keys, arguments)
            answers.extend(cast(Entry, answer.decode()) for answer in found)
        return answers

    async def take(self, count: int, *, reclaim: bool = False) -> Taken:
        """Up to `count` jobs, at once; with `reclaim` also such whose worker died.

        Raises RedisUnavailable.
        """
        found = await self._redis.script(
            scripts.TAKE,
            [*self._streams, self._keys.jobs, self._keys.later],
            [GROUP, self._consumer, count, int(reclaim), self._lease_ms, SUSPECT_DELIVERIES],
        )
        return _taken(found)

    async def wait(self, longest_s: float) -> Taken:
        """The next job, and the next of the other priority if it is there, as soon as one comes;
        none after `longest_s`, which must be below the connection's timeout.

        Only after a `take`. Raises RedisUnavailable.
        """
        command = ("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", 1, "BLOCK")
        block_ms = max(1, round(longest_s * 1000))
        try:
            found: Any = await self._redis.command(
                *command, block_ms, "STREAMS", *self._streams, ">", ">"
            )
        except Refused:
            # The data was flushed under us; `take` makes the groups anew.
            return Taken()
        places = {stream.encode(): place for place, stream in enumerate(self._streams, 1)}
        return _taken(
            (places[stream], entry, fields[b"job"], 1)
            for stream, entries in found or ()
            for entry, fields in entries
        )

    async def hold(self, held: Sequence[Held]) -> int:
        """Begin these jobs' lease anew; how many are still ours. Raises RedisUnavailable."""
        arguments: list[Argument] = [GROUP, self._consumer]
        for one in held:
            arguments += (one.place, one.entry)
        return int(await self._redis.script(scripts.HOLD, self._streams, arguments))

    async def finish(self, done: Sequence[Done]) -> list[bool]:
        """Store answers and end their jobs. False: another worker ended that job before.

        Raises RedisUnavailable; it may be called again with the same.
        """
        arguments: list[Argument] = [GROUP, MADE_ENTRIES]
        for one in done:
            job = one.held.job
            user_id = job.request.user_id or ""
            arguments += (one.held.place, one.held.entry, job.id, one.value, one.ttl_s, user_id)
        keys = [*self._streams, self._keys.jobs, self._keys.made]
        return await self._end(scripts.FINISH, keys, [one.store_key for one in done], arguments)

    async def postpone(self, held: Held, wait_s: float) -> bool:
        """Try a job again after `wait_s`, one failure later. Raises RedisUnavailable."""
        job = held.job.again(held.job.attempt + 1)
        wait_ms = round(wait_s * 1000)
        arguments = [GROUP, held.place, held.entry, job.id, job_to_json(job), wait_ms]
        keys = [*self._streams, self._keys.jobs, self._keys.later]
        return (await self._end(scripts.POSTPONE, keys, [], arguments))[0]

    async def bury(self, dead: Sequence[Dead]) -> list[bool]:
        """Make dead letters of jobs. Raises RedisUnavailable."""
        arguments: list[Argument] = [GROUP, DEAD_ENTRIES]
        for one in dead:
            job, place, entry = one.held.job, one.held.place, one.held.entry
            arguments += (place, entry, job.id, job_to_json(job), one.reason, one.value)
            arguments.append(FAILED_TTL_S)
        keys = [*self._streams, self._keys.jobs, self._keys.dead]
        return await self._end(scripts.BURY, keys, [one.store_key for one in dead], arguments)

    async def discard(self, unreadable: Unreadable) -> None:
        """Make a dead letter of an entry that holds no job. Raises RedisUnavailable."""
        stream = self._streams[unreadable.place - 1]
        await self._redis.command(
            *("XADD", self._keys.dead, "MAXLEN", "~", DEAD_ENTRIES, "*"),
            *("job", unreadable.payload, "reason", unreadable.reason),
        )
        await self._redis.command("XACK", stream, GROUP, unreadable.entry)
        await self._redis.command("XDEL", stream, unreadable.entry)
        if id := _id_of(unreadable.payload):
            await self._redis.command("HDEL", self._keys.jobs, id)

    async def unfinished(self, ids: Sequence[str]) -> list[str]:
        """Those of the jobs that are not done yet. Raises RedisUnavailable."""
        left: list[str] = []
        for start in range(0, len(ids), DOOR_BATCH):
            part = ids[start : start + DOOR_BATCH]
            found = await self._redis.command("HMGET", self._keys.jobs, *part)
            left += [id for id, where in zip(part, found, strict=True) if where is not None]
        return left

    async def status(self) -> QueueStatus:
        """The queue in numbers. Raises RedisUnavailable."""
        keys = self._keys
        now, jobs, postponed, dead, made, *of_streams = await self._redis.script(
            scripts.STATUS,
            [*self._streams, keys.jobs, keys.later, keys.dead, keys.made],
            [GROUP],
        )
        live, warm = of_streams[:3], of_streams[3:]
        parts = {Priority.LIVE: live, Priority.WARM: warm}
        return QueueStatus(
            jobs=jobs,
            postponed=postponed,
            dead=dead,
            made=made,
            waiting={priority: entries - held for priority, (entries, held, _) in parts.items()},
            in_hand=live[1] + warm[1],
            oldest_s={
                priority: max(0.0, (now - since) / 1000) if since else 0.0
                for priority, (_, _, since) in parts.items()
            },
        )

    async def _end(
        self,
        script: scripts.Script,
        keys: Sequence[str],
        store_keys: Sequence[str],
        arguments: Sequence[Argument],
    ) -> list[bool]:
        return [
            bool(answer)
            for answer in await self._redis.script(script, [*keys, *store_keys], arguments)
        ]

    def _store_key(self, version: str, job: Job) -> str:
        return self._keys.keywords(version, job.request.normalised, job.request.user_id)


def _taken(found: Iterable[tuple[int, bytes, bytes, int]]) -> Taken:
    jobs, unreadable = list[Held](), list[Unreadable]()
    for place, entry, payload, deliveries in found:
        try:
            jobs.append(Held(job_from_json(payload), place, entry, deliveries))
        except DataError as error:
            unreadable.append(Unreadable(payload, place, entry, str(error)))
    return Taken(tuple(jobs), tuple(unreadable))


def _id_of(payload: bytes) -> str:
    """The id in an entry that is no job of ours, perhaps of another program version; else ""."""
    try:
        raw = cast(object, orjson.loads(payload))
    except orjson.JSONDecodeError:
        return ""
    id = cast(dict[str, object], raw).get("id") if isinstance(raw, dict) else None
    return id if isinstance(id, str) else ""
