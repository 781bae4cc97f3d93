"""Keywords written by a language model behind an OpenAI-compatible service.

    understanding   query → analysis and generic keywords: one structured reply (METHOD §4, 1 and 2)
    calibration     keywords, profile, recent queries and clicks → keywords for this user (§4, 3);
                    a second reply, asked for only where something is known of the user

A reply is asked for with a JSON schema; a service that does not take one is asked for any JSON
object, then for plain text, and what worked is remembered. Whatever comes is validated
(server.keywords.reply); one that is not valid is shown to the model once, with what is wrong.

Nothing is tried again here: a GenerationError says whether and when to. Calls are bounded in number
at a time, by budgets, by the service's own Retry-After and by a circuit breaker. Replies that the
model got wrong do not open the breaker; silence and failures of the service do.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import orjson

from index.errors import ConfigError
from index.text import words
from server.keywords.breaker import BreakerState, CircuitBreaker
from server.keywords.budget import Budget, Reservation, Shortage
from server.keywords.chat import ChatClient, ChatError, ChatSettings, Completion, FormatError
from server.keywords.generator import Failure, GenerationError
from server.keywords.keywords import Analysis, KeywordRequest, Keywords, Source
from server.keywords.prompt import (
    Data,
    Message,
    Prompt,
    estimate_tokens,
    repair_messages,
)
from server.keywords.reply import (
    REPLY_VERSION,
    Calibration,
    ReplyError,
    StrictReply,
    Understanding,
    analysis_of,
    parse,
    terms_of,
)
from server.keywords.response_format import RUNGS, format_of, rung_of
from server.keywords.vocabulary import Vocabulary

NAME = "llm"
ANSWERED = "answered"
VALID = "valid"
REPAIRED = "repaired"
# For all calls of one request, and its waiting for others to end.
PATIENCE_S = 300.0
# More of a wrong reply is not shown to the model again.
REPAIR_LENGTH = 2000
# What a calibration may see of a user, newest first to be kept (METHOD §2: a window of 5).
RECENT = 5
PROFILE = 8
RECENT_LENGTH = 120

GenericLookup: TypeAlias = Callable[[KeywordRequest], Awaitable[Keywords | None]]
Answer = TypeVar("Answer", bound=StrictReply)


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request to the model, for metrics.

    `step`: "understanding" or "calibration". `outcome`: "answered" or a Failure. Tokens are 0 where
    they are not known.
    """

    step: str
    outcome: str
    latency_s: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    repair: bool = False


@dataclass(frozen=True, slots=True)
class LlmStats:
    """Counted since the start. `calls`: HTTP requests by outcome (see Call), `call_s`: their time.
    `replies`: questions put to the model, by "valid", "repaired" or "invalid-answer". `failures`:
    requests without keywords, by Failure. `response_format`: one of RUNGS, the strictest that is
    known to work.
    """

    calls: Mapping[str, int]
    call_s: float
    replies: Mapping[str, int]
    failures: Mapping[str, int]
    repairs: int
    prompt_tokens: int
    completion_tokens: int
    breaker: BreakerState
    breaker_opened: int
    response_format: str


class LlmGenerator:
    """A KeywordGenerator. Used on one event loop, closed with `aclose`.

    `response_format`: the strictest of RUNGS to ask for. `patience_s`: a request that has no
    keywords by then fails alone, and what others of its batch found is kept. `catalogue_version`
    is part of the source. With a `vocabulary` only terms whose words the catalogue has are kept,
    in its order, and its version is the catalogue's. `generic` finds generic keywords made before,
    so that a personalised request need not have its query understood again. `observe` is told of
    each call.
    """

    def __init__(
        self,
        settings: ChatSettings,
        budget: Budget | None = None,
        breaker: CircuitBreaker | None = None,
        *,
        response_format: str = RUNGS[0],
        patience_s: float = PATIENCE_S,
        catalogue_version: str = "",
        vocabulary: Vocabulary | None = None,
        generic: GenericLookup | None = None,
        observe: Callable[[Call], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._budget = budget or Budget()
        self._breaker = breaker or CircuitBreaker()
        self._vocabulary = vocabulary
        self._generic = generic
        self._patience_s = patience_s
        self._observe = observe
        self._clock = clock
        self._understanding = Prompt.load("understanding")
        self._calibration = Prompt.load("calibration")
        self._chat = ChatClient(settings)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._blocked_until = 0.0
        self._rung = rung_of(response_format)
        self._calls: Counter[str] = Counter()
        self._call_s = 0.0
        self._replies: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._repairs = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0
        if vocabulary is not None:
            catalogue_version = catalogue_version or vocabulary.version
        self._source = Source(
            NAME, settings.model, self._prompt_version(), catalogue_version, settings.temperature
        )
        self._check_budget()

    @property
    def name(self) -> str:
        return self._source.generator

    @property
    def version(self) -> str:
        return self._source.version

    def stats(self) -> LlmStats:
        return LlmStats(
            dict(self._calls),
            self._call_s,
            dict(self._replies),
            dict(self._failures),
            self._repairs,
            self._prompt_tokens,
            self._completion_tokens,
            self._breaker.state,
            self._breaker.opened,
            RUNGS[self._rung],
        )

    async def aclose(self) -> None:
        """Closes the connections to the service."""
        await self._chat.aclose()

    async def generate(
        self, requests: Sequence[KeywordRequest]
    ) -> list[Keywords | GenerationError]:
        """One answer for each request, in their order; `concurrency` calls run at a time."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._answer(request)) for request in requests]
        return [task.result() for task in tasks]

    async def _answer(self, request: KeywordRequest) -> Keywords | GenerationError:
        try:
            async with asyncio.timeout(self._patience_s):
                keywords = await self._understand(request)
                if request.personalised:
                    keywords = await self._calibrate(request, keywords)
        except ChatError as error:
            self._failures[error.failure] += 1
            return GenerationError(error.failure, str(error), error.retry_after_s)
        except TimeoutError:
            self._failures[Failure.TIMEOUT] += 1
            message = f"{self._settings.origin}: no keywords within {self._patience_s:g} s"
            return GenerationError(Failure.TIMEOUT, message)
        return keywords

    async def _understand(self, request: KeywordRequest) -> Keywords:
        if request.personalised and self._generic is not None:
            known = await self._generic(request)
            if known is not None and known.source == self._source:
                return known
        query = request.normalised
        if not words(query):
            return Keywords(query, (), (), Analysis(), self._source, self._clock())
        data: dict[str, Data] = {"query": query}
        if request.locale:
            data["locale"] = request.locale
        reply = await self._ask(Understanding, self._understanding, data)
        analysis = analysis_of(reply, query, self._vocabulary)
        terms = ()
        if analysis.merchandise:
            terms = terms_of(reply.keywords, analysis.excluded, self._vocabulary)
        return Keywords(query, terms, analysis.excluded, analysis, self._source, self._clock())

    async def _calibrate(self, request: KeywordRequest, generic: Keywords) -> Keywords:
        terms = generic.terms
        if generic.analysis.merchandise and words(generic.query):
            data: dict[str, Data] = {
                "query": generic.query,
                "keywords": list(generic.terms),
                "excluded": list(generic.excluded),
                "profile": {
                    name[:RECENT_LENGTH]: value[:RECENT_LENGTH]
                    for name, value in request.profile[:PROFILE]
                },
                "recent_queries": _latest(request.recent_queries),
                "clicked_titles": _latest(request.clicked_titles),
            }
            reply = await self._ask(Calibration, self._calibration, data)
            terms = terms_of(reply.keywords, generic.excluded, self._vocabulary)
            terms = _grounded(terms, request, generic)
        return Keywords(
            generic.query,
            terms,
            generic.excluded,
            generic.analysis,
            self._source,
            self._clock(),
            personalised=True,
        )

    async def _ask(self, kind: type[Answer], prompt: Prompt, data: Mapping[str, Data]) -> Answer:
        """A valid reply, after one repair if need be. Raises ChatError."""
        messages = prompt.messages(data)
        completion = await self._complete(messages, kind, prompt.name)
        try:
            reply = parse(kind, completion.text)
        except ReplyError as error:
            problem = self._problem(error, completion)
            self._repairs += 1
            messages = repair_messages(messages, completion.text[:REPAIR_LENGTH], problem)
            completion = await self._complete(messages, kind, prompt.name, repair=True)
            try:
                reply = parse(kind, completion.text)
            except ReplyError as again:
                self._replies[Failure.INVALID_ANSWER] += 1
                raise ChatError(
                    Failure.INVALID_ANSWER,
                    f"{self._settings.origin}: no valid reply, nor after one repair: "
                    + self._problem(again, completion),
                ) from None
            self._replies[REPAIRED] += 1
            return reply
        self._replies[VALID] += 1
        return reply

    def _problem(self, error: ReplyError, completion: Completion) -> str:
        if completion.cut_off:
            return f"it was cut off after {self._settings.max_tokens} tokens, be shorter; {error}"
        return str(error)

    async def _complete(
        self, messages: Sequence[Message], kind: type[StrictReply], step: str, repair: bool = False
    ) -> Completion:
        """A completion in the strictest response format that the service takes."""
        for rung in range(self._rung, len(RUNGS)):
            try:
                completion = await self._call(messages, kind, step, rung, repair)
            except FormatError:
                if rung == len(RUNGS) - 1:
                    raise
                continue
            # Only what worked is remembered: the request itself may have been the reason.
            self._rung = max(self._rung, rung)
            return completion
        raise AssertionError("the last rung returns or raises")

    async def _call(
        self,
        messages: Sequence[Message],
        kind: type[StrictReply],
        step: str,
        rung: int,
        repair: bool,
    ) -> Completion:
        async with self._slots:
            reservation = self._reserve(messages)
            era = self._breaker.begin()
            started = time.monotonic()
            try:
                completion = await self._chat.complete(messages, format_of(kind, rung))
            except ChatError as error:
                self._failed(error, era, reservation)
                self._note(Call(step, error.failure, time.monotonic() - started, repair=repair))
                raise
            except BaseException:
                self._breaker.abandon(era)
                raise
            self._breaker.succeed(era)
            prompt_tokens = completion.prompt_tokens or 0
            completion_tokens = completion.completion_tokens or 0
            if completion.prompt_tokens is not None and completion.completion_tokens is not None:
                self._budget.settle(reservation, prompt_tokens + completion_tokens)
            latency_s = time.monotonic() - started
            self._note(Call(step, ANSWERED, latency_s, prompt_tokens, completion_tokens, repair))
            return completion

    def _reserve(self, messages: Sequence[Message]) -> Reservation:
        """Room for a call. Raises ChatError if none may be made now."""
        wait_s = self._blocked_until - time.monotonic()
        if wait_s > 0:
            message = f"{self._settings.origin} asked not to be called for now"
            raise ChatError(Failure.RATE_LIMITED, message, retry_after_s=wait_s)
        wait_s = self._breaker.wait_s()
        if wait_s > 0:
            message = f"{self._settings.origin} keeps failing and is left alone for now"
            raise ChatError(Failure.UNAVAILABLE, message, retry_after_s=wait_s)
        room = self._budget.reserve(estimate_tokens(messages) + self._settings.max_tokens)
        if isinstance(room, Shortage):
            failure = Failure.BUDGET if room.wait_s is not None else Failure.INVALID_REQUEST
            raise ChatError(failure, room.message, retry_after_s=room.wait_s)
        return room

    def _failed(self, error: ChatError, era: int, reservation: Reservation) -> None:
        if error.blames:
            self._breaker.fail(era)
        elif error.failure is Failure.RATE_LIMITED:
            self._breaker.abandon(era)
        else:
            self._breaker.succeed(era)
        if not error.spent:
            self._budget.settle(reservation, 0)
        if error.retry_after_s is not None:
            until = time.monotonic() + error.retry_after_s
            self._blocked_until = max(self._blocked_until, until)

    def _note(self, call: Call) -> None:
        self._calls[call.outcome] += 1
        self._call_s += call.latency_s
        self._prompt_tokens += call.prompt_tokens
        self._completion_tokens += call.completion_tokens
        if self._observe is not None:
            self._observe(call)

    def _prompt_version(self) -> str:
        parts = (
            self._understanding.version,
            self._calibration.version,
            str(REPLY_VERSION),
            str(self._settings.max_tokens),
            orjson.dumps(dict(self._settings.extra), option=orjson.OPT_SORT_KEYS).decode(),
        )
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=6).hexdigest()

    def _check_budget(self) -> None:
        """A budget that no request fits in is found at the start."""
        least = estimate_tokens(self._understanding.messages({"query": ""}))
        problem = self._budget.too_large(least + self._settings.max_tokens)
        if problem is not None:
            raise ConfigError(f"the language model's budget is too small: {problem}")


def _latest(texts: Sequence[str]) -> list[str]:
    return [text[:RECENT_LENGTH] for text in texts[-RECENT:]]


def _grounded(terms: Sequence[str], request: KeywordRequest, generic: Keywords) -> tuple[str, ...]:
    """The terms that share a word with the query, its keywords or the user's history."""
    profile = (value for _, value in request.profile)
    texts = (
        *(generic.query, *generic.terms, *profile),
        *(*request.recent_queries, *request.clicked_titles),
    )
    known = {word for text in texts for word in words(text)}
    return tuple(term for term in terms if not known.isdisjoint(words(term)))
