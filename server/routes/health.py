"""Probes and metrics: /livez, /readyz, /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from server.errors import Problem
from server.gateway import gateway_of
from server.schemas import Status, problem_responses

router = APIRouter(tags=["operation"])


@router.head("/livez", include_in_schema=False)
@router.get("/livez", response_model_exclude_none=True, summary="Is the process alive")
async def livez() -> Status:
    """Answers as long as the event loop turns."""
    return Status(status="ok")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses=problem_responses(503), summary="Should requests be sent here")
async def readyz(request: Request) -> Status:
    """503 while nothing is loaded and while the process is about to end."""
    gateway = gateway_of(request)
    if gateway.draining:
        raise Problem(
            "not-ready", "the server is ending", retry_after_s=gateway.settings.retry_after_s
        )
    serving = gateway.serving()
    return Status(
        status="ok",
        model_version=serving.model_version,
        index_version=serving.index_version,
        simulated=serving.simulated,
        items=serving.items,
    )


@router.get("/metrics", response_class=PlainTextResponse, summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """The text exposition format."""
    return Response(gateway_of(request).metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
