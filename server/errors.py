"""Problems: every error answer is `application/problem+json` (RFC 9457) with a stable `type`.

Problem (raised anywhere below the gateway)   one row of PROBLEMS + what happened this time
OnesearchError                                "internal": its message is for whoever runs the server
anything else                                 "internal": a bug; the log has its traceback

An answer never repeats the input, a path of the machine or a traceback.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from index.errors import OnesearchError
from server.headers import has_begun

PROBLEM_MEDIA_TYPE = "application/problem+json"
MAX_PLACES = 20


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of problem: its slug never changes once published."""

    slug: str
    status: int
    title: str
    remedy: str


PROBLEMS = {
    kind.slug: kind
    for kind in (
        ProblemType(
            "malformed-request", 400, "The request cannot be read", "Send valid HTTP and JSON."
        ),
        ProblemType(
            "key-refused",
            401,
            "The request needs an API key",
            "Send Authorization: Bearer KEY; whoever runs the server makes keys.",
        ),
        ProblemType(
            "scope-missing",
            403,
            "The API key does not allow this",
            "Use a key with the scope that the detail names.",
        ),
        ProblemType(
            "not-found", 404, "There is nothing here", "See /docs for the paths that exist."
        ),
        ProblemType(
            "changes-refused",
            403,
            "The catalogue may not be changed here",
            "Set catalogue_changes, or send the change from the server's own machine.",
        ),
        ProblemType(
            "events-refused",
            403,
            "Events are not taken here",
            "Set events, or send them from the server's own machine.",
        ),
        ProblemType(
            "admin-refused",
            403,
            "This path is not for everyone",
            "Set admin, or send the request from the server's own machine.",
        ),
        ProblemType(
            "generation-not-found",
            404,
            "No such generation",
            "Use an alias, a version, or the start of one, as GET /admin/generations lists them.",
        ),
        ProblemType(
            "item-not-found",
            404,
            "No such item",
            "Use an item_id of the catalogue that is being served.",
        ),
        ProblemType(
            "method-not-allowed",
            405,
            "This path does not take that method",
            "Use a method that the Allow header names.",
        ),
        ProblemType(
            "request-timeout", 408, "The body did not arrive in time", "Send the body at once."
        ),
        ProblemType(
            "catalogue-read-only",
            409,
            "The catalogue cannot be changed by this server",
            "Send the change to the server that holds the catalogue.",
        ),
        ProblemType(
            "no-registry",
            409,
            "This server follows no registry",
            "Publish a generation and start the server without snapshot and checkpoint.",
        ),
        ProblemType(
            "generation-refused",
            409,
            "The generation was not taken",
            "Mend what the detail names; the generation that was served before serves on.",
        ),
        ProblemType(
            "champion-moved",
            409,
            "Another generation is champion by now",
            "Look at GET /admin/generations and decide again.",
        ),
        ProblemType("body-too-large", 413, "The body is too large", "Send a smaller body."),
        ProblemType(
            "unsupported-media-type",
            415,
            "The body is not JSON",
            "Send Content-Type: application/json.",
        ),
        ProblemType(
            "invalid-request",
            422,
            "A field is wrong",
            "Mend the fields that `errors` names.",
        ),
        ProblemType(
            "no-valid-change",
            422,
            "None of the changes could be applied",
            "Mend the changes that `errors` names.",
        ),
        ProblemType(
            "no-valid-event",
            422,
            "None of the events could be taken",
            "Mend the events that `errors` names.",
        ),
        ProblemType(
            "too-many-requests",
            429,
            "More requests than this client may send",
            "Send fewer; try again after Retry-After seconds.",
        ),
        ProblemType(
            "internal",
            500,
            "The server failed",
            "Try again; give the request_id to whoever runs this server.",
        ),
        ProblemType(
            "overloaded", 503, "Too many requests at once", "Try again after Retry-After seconds."
        ),
        ProblemType(
            "not-ready", 503, "The server is not ready", "Try again after Retry-After seconds."
        ),
        ProblemType(
            "changes-unavailable",
            503,
            "Changes cannot be written just now",
            "Try again after Retry-After seconds; whoever runs the server finds why in its log.",
        ),
        ProblemType(
            "events-unavailable",
            503,
            "Events cannot be kept just now",
            "Send the same events again after Retry-After seconds.",
        ),
        ProblemType(
            "deadline-exceeded",
            504,
            "No answer within the time allowed",
            "Allow more time with timeout_ms, or ask for a smaller beam_width.",
        ),
    )
}
_SLUG_OF_STATUS = {404: "not-found", 405: "method-not-allowed", 415: "unsupported-media-type"}


@dataclass(frozen=True, slots=True)
class Place:
    """One wrong field: where (`body.filters.price_min`) and what is wrong with it."""

    place: str
    problem: str


class Problem(Exception):
    """An error answer. `slug` is a key of PROBLEMS; `detail` says what happened this time."""

    def __init__(
        self,
        slug: str,
        detail: str,
        *,
        places: Sequence[Place] = (),
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = PROBLEMS[slug]
        self.detail = detail
        self.places = tuple(places)
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))

    def response(self, request_id: str) -> Response:
        """The wire form."""
        body: dict[str, Any] = {
            "type": f"/problems/{self.kind.slug}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.places:
            body["errors"] = [
                {"place": place.place, "problem": place.problem}
                for place in self.places[:MAX_PLACES]
            ]
        return Response(
            orjson.dumps(body),
            status_code=self.kind.status,
            media_type=PROBLEM_MEDIA_TYPE,
            headers=self.headers,
        )


def invalid(place: str, problem: str) -> Problem:
    """A 422 about one field."""
    return Problem("invalid-request", f"{place}: {problem}", places=[Place(place, problem)])


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with a problem, from a middleware; the log names it."""
    scope["onesearch.problem"] = problem.kind.slug
    await problem.response(request_id_of(scope))(scope, receive, send)


def _answered(problem: Problem, request: Request) -> Response:
    request.scope["onesearch.problem"] = problem.kind.slug
    return problem.response(request_id_of(request.scope))


def request_id_of(scope: Mapping[str, Any]) -> str:
    """The id that the Envelope middleware gave this request."""
    return str(scope.get("onesearch.request_id", ""))


def install(app: FastAPI, log: FilteringBoundLogger) -> None:
    """Register a handler for each kind of exception that routes may raise."""

    async def on_onesearch_error(request: Request, error: Exception) -> Response:
        request_id = request_id_of(request.scope)
        log.error(
            "search failed",
            request_id=request_id,
            error=type(error).__name__,
            detail=str(error),
        )
        return _answered(Problem("internal", "the search failed; it has been logged"), request)

    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        Problem: _on_problem,
        RequestValidationError: _on_validation_error,
        HTTPException: _on_http_exception,
        OnesearchError: on_onesearch_error,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _on_problem(request: Request, error: Exception) -> Response:
    return _answered(cast(Problem, error), request)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    failure = cast(HTTPException, error)
    slug = _SLUG_OF_STATUS.get(failure.status_code)
    if slug is None:
        slug = "malformed-request" if failure.status_code < 500 else "internal"
    headers = {"Allow": _allowed_methods(request)} if slug == "method-not-allowed" else {}
    detail = PROBLEMS[slug].remedy
    return _answered(Problem(slug, detail, headers=headers), request)


def _allowed_methods(request: Request) -> str:
    """All methods of the path: Starlette names only those of the first route that matches."""
    methods: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is Match.PARTIAL:
            methods |= route.methods or set()
    return ", ".join(sorted(methods))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    problems = cast(Sequence[Mapping[str, Any]], cast(RequestValidationError, error).errors())
    return _answered(_validation_problem(request, problems), request)


def _validation_problem(request: Request, problems: Sequence[Mapping[str, Any]]) -> Problem:
    first = problems[0]
    if first["type"] == "json_invalid":
        return Problem("malformed-request", "the body is not valid JSON")
    if tuple(first["loc"]) == ("body",) and not declares_json(request):
        return Problem("unsupported-media-type", "send Content-Type: application/json")
    places = [_place(problem) for problem in problems[:MAX_PLACES]]
    detail = f"{places[0].place}: {places[0].problem}"
    if len(problems) > 1:
        detail += f" (and {len(problems) - 1} more)"
    return Problem("invalid-request", detail, places=places)


def declares_json(request: Request) -> bool:
    """Whether the body is said to be application/json or application/*+json, which FastAPI
    parses; other bodies stay bytes."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    kind, _, form = media_type.partition("/")
    return kind == "application" and (form == "json" or form.endswith("+json"))


def _place(problem: Mapping[str, Any]) -> Place:
    """The field's path; a name that we did not define is the client's text and is not repeated."""
    parts = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        return Place(".".join(parts[:-1]), "has a field that does not exist; see /docs")
    message = str(problem["msg"]).removeprefix("Value error, ")
    return Place(".".join(parts), message)


class UnexpectedErrors:
    """ASGI middleware: a bug becomes a logged traceback and a plain 500."""

    def __init__(self, app: ASGIApp, log: FilteringBoundLogger) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception:
            request_id = request_id_of(scope)
            self._log.exception("unexpected error", request_id=request_id)
            if has_begun(scope):
                raise
            problem = Problem("internal", "an unexpected error; it has been logged")
            await refuse(problem, scope, receive, send)
