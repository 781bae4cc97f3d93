"""Dead letters: jobs that could not be done, kept until a person decides what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from index.errors import DataError
from server.keywords.jobs import Job, job_from_json, job_to_json
from server.keywords.queue import DEFAULT_LIMIT
from server.redis import scripts
from server.redis.connection import Argument, RedisConnection
from server.redis.keys import Keys

BATCH = 200
REPLAYED: tuple[str, ...] = ("queued", "duplicate", "gone", "full", "unreadable")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """`id` is the letter's, not the job's; `job` None: the entry held none. `died_s`: seconds since
    1970."""

    id: str
    job: Job | None
    reason: str
    died_s: float


class DeadLetters:
    """The dead letters under one prefix."""

    def __init__(self, redis: RedisConnection, keys: Keys, limit: int = DEFAULT_LIMIT) -> None:
        self._redis = redis
        self._keys = keys
        self._limit = limit

    async def newest(self, count: int) -> list[DeadLetter]:
        """The newest ones, newest first. Raises RedisUnavailable."""
        found = await self._redis.command("XREVRANGE", self._keys.dead, "+", "-", "COUNT", count)
        return [_letter(entry, fields) for entry, fields in found]

    async def replay(self, ids: Sequence[str] | None, version: str | None) -> dict[str, int]:
        """Make jobs of these letters again, of all when `ids` is None; how many were queued,
        duplicate, gone (there is no such letter), full (no room: still dead letters), unreadable.

        Raises RedisUnavailable.
        """
        counts: dict[str, int] = dict.fromkeys(REPLAYED, 0)
        letters = await self._all() if ids is None else await self._named(ids, counts)
        for start in range(0, len(letters), BATCH):
            keys = [self._keys.jobs, self._keys.warm, self._keys.dead]
            arguments: list[Argument] = [self._limit]
            for letter in letters[start : start + BATCH]:
                if letter.job is None:
                    counts["unreadable"] += 1
                    continue
                request = letter.job.request
                arguments += (letter.id, letter.job.id, job_to_json(letter.job.again()))
                keys.append(self._keys.keywords(version or "", request.normalised, request.user_id))
            if len(arguments) > 1:
                for answer in await self._redis.script(scripts.REPLAY, keys, arguments):
                    counts[answer.decode()] += 1
        return counts

    async def _all(self) -> list[DeadLetter]:
        letters, after = list[DeadLetter](), "-"
        while True:
            found = await self._redis.command("XRANGE", self._keys.dead, after, "+", "COUNT", BATCH)
            letters += [_letter(entry, fields) for entry, fields in found]
            if len(found) < BATCH:
                return letters
            after = f"({letters[-1].id}"

    async def _named(self, ids: Sequence[str], counts: dict[str, int]) -> list[DeadLetter]:
        letters: list[DeadLetter] = []
        for id in ids:
            found = await self._redis.command("XRANGE", self._keys.dead, id, id)
            if found:
                letters.append(_letter(*found[0]))
            else:
                counts["gone"] += 1
        return letters


def _letter(entry: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    try:
        job = job_from_json(fields[b"job"])
    except DataError:
        job = None
    died_s = int(entry.partition(b"-")[0]) / 1000
    return DeadLetter(entry.decode(), job, fields[b"reason"].decode(errors="replace"), died_s)


def letter_to_json(letter: DeadLetter) -> dict[str, Any]:
    """One letter for `--json` and the admin's eyes."""
    job = letter.job
    return {
        "id": letter.id,
        "query": None if job is None else job.request.query,
        "user_id": None if job is None else job.request.user_id,
        "priority": None if job is None else job.priority,
        "attempts": None if job is None else job.attempt,
        "reason": letter.reason,
        "died_s": letter.died_s,
    }
