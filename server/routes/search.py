"""POST and GET /v1/search."""

from __future__ import annotations

import asyncio
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from decoding.errors import DeadlineExceeded, EngineOverloaded
from index.text import normalise
from server.disconnect import CLIENT_GONE_STATUS, ClientGone, while_connected
from server.errors import Problem, invalid, request_id_of
from server.gateway import Gateway, gateway_of
from server.generation import CHALLENGER
from server.headers import arrived
from server.schemas import SearchParameters, SearchRequest, SearchResponse, problem_responses


class SearchRoute(APIRoute):
    """A route whose bodies, where they are right, do not take the way of all bodies.

    FastAPI describes them as everywhere. But a search is what most requests are, and nearly all are
    right JSON: these are read at once, with the same model and the same result, at a fraction of
    the cost. Whatever is not exactly that goes the way of all, and gets its error there.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of this path."""
        asked = right_body(scope) if scope["method"] == "POST" and "POST" in self.methods else None
        if asked is None:
            await super().handle(scope, receive, send)
            return
        response = await _answer(asked, Request(scope, receive), "body")
        await response(scope, receive, send)


def right_body(scope: Scope) -> SearchRequest | None:
    """The search that a body asks for; None where the body is not plainly right."""
    if (b"content-type", JSON) not in scope["headers"]:
        return None
    try:
        # Stricter than Python's own parser: what it takes, that takes and understands alike.
        return SearchRequest.model_validate(orjson.loads(scope["onesearch.body"]))
    except (KeyError, orjson.JSONDecodeError, ValidationError):
        return None


JSON = b"application/json"
router = APIRouter(tags=["search"], route_class=SearchRoute)
_PROBLEMS = problem_responses(400, 422, 500, 503, 504)


@router.post(
    "/v1/search",
    response_model=SearchResponse,
    responses=_PROBLEMS | problem_responses(408, 413, 415),
    summary="Search the catalogue",
)
async def search(body: SearchRequest, request: Request) -> Response:
    """Items for a query, best first. A degraded answer says so in `degraded`."""
    return await _answer(body, request, "body")


@router.get(
    "/v1/search",
    response_model=SearchResponse,
    responses=_PROBLEMS,
    summary="Search the catalogue, by link",
)
async def search_by_link(
    parameters: Annotated[SearchParameters, Query()], request: Request
) -> Response:
    """The same search; lists are repeated parameters (`color=black&color=white`)."""
    return await _answer(parameters.as_request(), request, "query")


async def _answer(body: SearchRequest, request: Request, source: str) -> Response:
    gateway = gateway_of(request)
    settings = gateway.settings
    _check_query(body.query, settings.query_characters, f"{source}.query")
    gateway.serving()
    timeout_s = settings.timeout_s if body.timeout_ms is None else body.timeout_ms / 1000
    deadline = arrived(request.scope) + timeout_s
    request.scope["onesearch.allowed_s"] = timeout_s
    loop = asyncio.get_running_loop()
    try:
        # The loop's clock is time.monotonic, but only its documentation of `time()` is a promise.
        limit = loop.time() + deadline - arrived(request.scope) + settings.response_slack_s
        async with asyncio.timeout_at(limit):
            found = await while_connected(
                request.receive,
                gateway.searcher.search(body, request_id_of(request.scope), deadline),
            )
    except ClientGone:
        return Response(status_code=CLIENT_GONE_STATUS)
    except EngineOverloaded as error:
        raise Problem(
            "overloaded",
            "the engine has more to do than it can",
            retry_after_s=error.retry_after_s,
        ) from None
    except (TimeoutError, DeadlineExceeded):
        raise Problem(
            "deadline-exceeded",
            f"no answer within {timeout_s * 1000:.0f} ms",
            retry_after_s=settings.retry_after_s,
        ) from None
    for reason in found.degraded:
        gateway.metrics.degraded.labels(reason).inc()
    if gateway.behaviour is not None:
        gateway.behaviour.shown(body, found, _share_of(gateway, found))
    request.scope["onesearch.timings_ms"] = found.timings_ms
    request.scope["onesearch.facts"] = {
        "query": body.query,
        "hits": len(found.hits),
        "candidates": found.total_candidates,
        "degraded": found.degraded,
        "keywords": None if found.keywords is None else found.keywords.state,
        "model_version": found.model_version,
        "index_version": found.index_version,
    }
    return Response(found.model_dump_json(), media_type="application/json")


def _share_of(gateway: Gateway, answer: SearchResponse) -> float | None:
    """The share of the units that the answer's arm has; None where there is no experiment."""
    if gateway.rollout is None or answer.experiment is None:
        return None
    canary = gateway.rollout.status().canary
    if canary is None or canary.experiment != answer.experiment:
        return None
    return canary.share if answer.arm == CHALLENGER else 1 - canary.share


def _check_query(query: str, max_characters: int, place: str) -> None:
    """A 422 Problem for a text that cannot be searched; the long one is not even normalised."""
    if len(query) > max_characters:
        raise invalid(place, f"at most {max_characters} characters are taken, not {len(query)}")
    if not normalise(query):
        raise invalid(place, "must hold at least one character that can be read")
