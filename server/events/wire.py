"""Wire data of `POST /v1/events`: what it takes and what it answers.

A request holds up to MAX_EVENTS events, which are judged one by one: a bad one is named by its
index and the others are taken. An `event_id` makes an event that is sent again the same event; who
gives none gets a digest of what the event says, which does as much for a client that repeats the
same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, cast

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from server.errors import Place, Problem
from server.events.records import Event
from server.experiment.records import SIMULATED_USER
from server.schemas import MAX_IDENTIFIER_CHARACTERS, Identifier

MAX_EVENTS = 1000
"""Of one request."""
MAX_POSITION = 100_000
MAX_AHEAD_S = 600.0
"""How much a client's clock may be ahead of this one."""
MAX_TOLD_PROBLEMS = 3
"""Of one refused event."""
_DIGEST_BYTES = 16
_STRICT = ConfigDict(extra="forbid", strict=True)


class SentEvent(BaseModel):
    """One thing that a user did with an item that a search showed."""

    model_config = _STRICT

    kind: Literal["impression", "click", "order"]
    request_id: Identifier = Field(description="of the answer that showed the item")
    item_id: Identifier = Field(examples=["i1"])
    time: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        description="Unix time, seconds", examples=[1763880000.0]
    )
    user_id: Identifier | None = Field(None, description="as in the search")
    event_id: Identifier | None = Field(
        None, description="events with the same id are one event; else what the event says decides"
    )
    position: Annotated[int, Field(ge=1, le=MAX_POSITION)] | None = Field(
        None, description="of the item in the answer, from 1"
    )
    simulated: bool = Field(False, description="nobody real did this")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An event that cannot be taken: the id that it names, and why."""

    event_id: str | None
    reason: str


def _or_unreadable(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError as error:
        return Unreadable(_named_id(value), _reason(error))


class SentEvents(BaseModel):
    """The body of POST /v1/events."""

    model_config = _STRICT

    events: Annotated[
        list[Annotated[SentEvent, WrapValidator(_or_unreadable)]],
        Field(min_length=1, max_length=MAX_EVENTS),
    ]


class RejectedEvent(BaseModel):
    """One event that was not taken. `index` counts from 0 in the order of the request."""

    index: int
    event_id: str | None = Field(description="null where the event names none")
    reason: str


class EventsTaken(BaseModel):
    """What became of a request's events; those accepted are kept, whoever is killed now."""

    accepted: int
    duplicates: int = Field(description="taken before, within the last day; not taken again")
    rejected: list[RejectedEvent]
    took_ms: float


class EventBatch(NamedTuple):
    """A request's events, and those that were refused already."""

    events: tuple[Event, ...]
    rejected: tuple[RejectedEvent, ...]


def events_of(body: bytes, now: float) -> EventBatch:
    """The events of a body that arrived at `now` (Unix time, seconds).

    Raises Problem or RequestValidationError where nothing can be made of the body.
    """
    good, bad = list[Event](), list[RejectedEvent]()
    for index, sent in enumerate(cast(list[SentEvent | Unreadable], _read(body).events)):
        if isinstance(sent, SentEvent) and sent.time > now + MAX_AHEAD_S:
            reason = "time: lies in the future; it is Unix time in seconds"
            sent = Unreadable(sent.event_id, reason)
        if isinstance(sent, Unreadable):
            bad.append(RejectedEvent(index=index, event_id=sent.event_id, reason=sent.reason))
        else:
            good.append(_event(sent))
    return EventBatch(tuple(good), tuple(bad))


def nothing_taken(rejected: Sequence[RejectedEvent]) -> Problem:
    """The 422 for a request without one event that could be taken."""
    places = [Place(f"body.events.{bad.index}", bad.reason) for bad in rejected]
    detail = f"no event could be taken; {places[0].place}: {places[0].problem}"
    if len(places) > 1:
        detail += f" (and {len(places) - 1} more)"
    return Problem("no-valid-event", detail, places=places)


def _event(sent: SentEvent) -> Event:
    user_id = sent.user_id
    return Event(
        sent.event_id or _digest(sent),
        sent.kind,
        sent.request_id,
        sent.item_id,
        user_id,
        sent.time,
        sent.position,
        sent.simulated or (user_id or "").startswith(SIMULATED_USER),
    )


def _digest(sent: SentEvent) -> str:
    said = (sent.kind, sent.request_id, sent.item_id, sent.user_id, sent.time, sent.position)
    return hashlib.blake2b(orjson.dumps(said), digest_size=_DIGEST_BYTES).hexdigest()


def _read(body: bytes) -> SentEvents:
    try:
        raw = cast(object, orjson.loads(body))
    except orjson.JSONDecodeError:
        raise Problem("malformed-request", "the body is not valid JSON") from None
    try:
        return SentEvents.model_validate(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**problem, "loc": ("body", *problem["loc"])} for problem in problems]
        ) from None


def _named_id(value: object) -> str | None:
    """The event_id of an event that cannot be read, where it is one."""
    named = cast(dict[object, object], value).get("event_id") if isinstance(value, dict) else None
    short = isinstance(named, str) and 0 < len(named) <= MAX_IDENTIFIER_CHARACTERS
    return cast(str, named) if short else None


def _reason(error: ValidationError) -> str:
    told = error.errors(include_url=False, include_context=False, include_input=False)
    reasons = list(_reasons(told[:MAX_TOLD_PROBLEMS]))
    more = len(told) - len(reasons)
    return "; ".join(reasons) + (f" (and {more} more)" if more else "")


def _reasons(problems: Sequence[Any]) -> Iterator[str]:
    """Names that we did not define are the client's text and are not repeated."""
    for problem in problems:
        if problem["type"] == "extra_forbidden":
            yield "has a field that does not exist; see /docs"
            continue
        path = ".".join(str(part) for part in problem["loc"])
        message = str(problem["msg"]).removeprefix("Value error, ")
        yield f"{path}: {message}" if path else message
