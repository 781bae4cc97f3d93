"""The protocol of keyword generators, and one that does nothing.

A generator answers a batch in the batch's order, one answer for each request. What goes wrong with
one request is an answer as well (`GenerationError`): it never spoils the others. An exception means
that the generator itself is broken or misconfigured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from server.keywords.keywords import Analysis, KeywordRequest, Keywords, Source


class Failure(StrEnum):
    """Why there are no keywords. The first four may pass by themselves."""

    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    RATE_LIMITED = "rate-limited"
    BUDGET = "budget"
    INVALID_ANSWER = "invalid-answer"
    REFUSED = "refused"
    INVALID_REQUEST = "invalid-request"


RETRYABLE = frozenset((Failure.TIMEOUT, Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.BUDGET))


@dataclass(frozen=True, slots=True)
class GenerationError:
    """A request that got no keywords: a value, not an exception.

    `message` is one line for a person. `retry_after_s`: when to try again, where that is known.
    """

    failure: Failure
    message: str
    retry_after_s: float | None = None

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.failure in RETRYABLE


class KeywordGenerator(Protocol):
    """Turns queries into keywords."""

    @property
    def name(self) -> str:
        """For logs and metrics, e.g. "llm"."""
        ...

    @property
    def version(self) -> str:
        """For store keys: keywords of equal versions may stand for one another (see Source)."""
        ...

    async def generate(
        self, requests: Sequence[KeywordRequest]
    ) -> list[Keywords | GenerationError]:
        """One answer for each request, in their order."""
        ...


class NullGenerator:
    """Answers with no terms, after `delay_s`: measures everything around a generator."""

    def __init__(self, delay_s: float = 0.0, clock: Callable[[], float] = time.time) -> None:
        self._source = Source("null")
        self._delay_s = delay_s
        self._clock = clock

    @property
    def name(self) -> str:
        return self._source.generator

    @property
    def version(self) -> str:
        return self._source.version

    async def generate(
        self, requests: Sequence[KeywordRequest]
    ) -> list[Keywords | GenerationError]:
        if self._delay_s > 0:
            await asyncio.sleep(self._delay_s)
        now, nothing = self._clock(), Analysis()
        return [
            Keywords(request.normalised, (), (), nothing, self._source, now, request.personalised)
            for request in requests
        ]
