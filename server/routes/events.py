"""POST /v1/events: what users did with what searches showed them."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.errors import Problem, declares_json
from server.events.wire import EventsTaken, SentEvents, events_of, nothing_taken
from server.gateway import gateway_of
from server.headers import arrived
from server.redis.connection import RedisUnavailable
from server.schemas import problem_responses, takes_body

router = APIRouter(tags=["events"])
ACCEPTED_STATUS = 202


@router.post(
    "/v1/events",
    response_model=EventsTaken,
    status_code=ACCEPTED_STATUS,
    responses=problem_responses(400, 403, 408, 413, 415, 422, 500, 503),
    openapi_extra=takes_body(SentEvents),
    summary="Tell of impressions, clicks and orders",
)
async def post_events(request: Request) -> Response:
    """Each event stands for itself: the good ones are taken, the others are listed. The answer
    comes when those taken are kept; after a 503 send the same events again."""
    gateway = gateway_of(request)
    if not declares_json(request):
        raise Problem("unsupported-media-type", "send Content-Type: application/json")
    behaviour = gateway.behaviour
    if behaviour is None:
        raise Problem("events-unavailable", "this server was started without a place for events")
    batch = await asyncio.to_thread(events_of, await request.body(), time.time())
    behaviour.metrics.events(rejected=len(batch.rejected))
    if not batch.events:
        raise nothing_taken(batch.rejected)
    try:
        new = await behaviour.take(batch.events)
    except RedisUnavailable as error:
        behaviour.metrics.events(failed=len(batch.events))
        gateway.log.warning("events not taken", events=len(batch.events), detail=str(error))
        raise Problem(
            "events-unavailable",
            "the events were not taken, or it is not known; send them again",
            retry_after_s=gateway.settings.retry_after_s,
        ) from None
    taken = EventsTaken(
        accepted=sum(new),
        duplicates=len(new) - sum(new),
        rejected=list(batch.rejected),
        took_ms=round((time.monotonic() - arrived(request.scope)) * 1000, 3),
    )
    behaviour.metrics.events(accepted=taken.accepted, duplicate=taken.duplicates)
    request.scope["onesearch.facts"] = {
        "accepted": taken.accepted,
        "duplicates": taken.duplicates,
        "rejected": len(taken.rejected),
    }
    return Response(
        taken.model_dump_json(), status_code=ACCEPTED_STATUS, media_type="application/json"
    )
