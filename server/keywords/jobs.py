"""A job: one query whose keywords somebody is to make. It travels through Redis as JSON.

Invariant: jobs of the same query (in normal form) and user have the same id, so that a query is
asked once however many searches miss it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from index.errors import DataError
from server.keywords.keywords import KeywordRequest
from server.redis.keys import digest

MAX_TRACEPARENT = 64


class Priority(StrEnum):
    """What is done first: searches that found nothing, then warming up."""

    LIVE = "live"
    WARM = "warm"

    @property
    def place(self) -> int:
        """The scripts' number for this priority's stream."""
        return 1 if self is Priority.LIVE else 2


@dataclass(frozen=True, slots=True)
class Job:
    """`attempt` counts the failures so far; `created_s` is in seconds since 1970. `traceparent`: of
    the search that missed the keywords, where that is traced (W3C Trace Context)."""

    id: str
    request: KeywordRequest
    priority: Priority
    created_s: float
    attempt: int = 0
    traceparent: Annotated[str, Field(max_length=MAX_TRACEPARENT)] | None = None

    @classmethod
    def of(
        cls,
        request: KeywordRequest,
        priority: Priority,
        now_s: float,
        traceparent: str | None = None,
    ) -> Job:
        """A new job for a request."""
        id = job_id(request.normalised, request.user_id)
        return cls(id, request, priority, now_s, traceparent=traceparent)

    def again(self, attempt: int = 0) -> Job:
        """The same after so many failures."""
        return replace(self, attempt=attempt)


def job_id(query: str, user_id: str | None) -> str:
    """The id of the job for a normalised query and, where they are meant, a user."""
    return digest(query if user_id is None else f"{query}\0{user_id}")


def job_to_json(job: Job) -> bytes:
    """One JSON object."""
    return orjson.dumps(job)


def job_from_json(raw: bytes | str) -> Job:
    """Raises DataError if `raw` is not a job."""
    try:
        return _JOB.validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"not a keyword job: {first['msg']}", field=place or None) from None


_JOB = TypeAdapter(Job)
