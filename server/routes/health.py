"""Probes and metrics: /livez, /readyz, /metrics."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from server.errors import Problem
from server.gateway import gateway_of
from server.rollout import Rollout
from server.schemas import (
    CanaryFacts,
    CatalogueFacts,
    DiscoveryFacts,
    GenerationFacts,
    Status,
    problem_responses,
)
from server.search import CatalogueStatus
from server.watch import Watch

router = APIRouter(tags=["operation"])


@router.head("/livez", include_in_schema=False)
@router.get("/livez", response_model_exclude_none=True, summary="Is the process alive")
async def livez() -> Status:
    """Answers as long as the event loop turns."""
    return Status(status="ok")


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    responses=problem_responses(503),
    response_model_exclude_none=True,
    summary="Should requests be sent here",
)
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
        generation=None if gateway.rollout is None else generation_facts(gateway.rollout),
        discovery=None if gateway.watch is None else _discovery_facts(gateway.watch),
        catalogue=_catalogue_facts(gateway.searcher.catalogue_status()),
    )


@router.get("/metrics", response_class=PlainTextResponse, summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """The text exposition format."""
    return Response(gateway_of(request).metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def generation_facts(rollout: Rollout) -> GenerationFacts:
    """The live generation of a server that follows a registry."""
    status = rollout.status()
    canary, condemned = status.canary, status.condemned
    return GenerationFacts(
        version=status.generation,
        alias=status.alias,
        revision=status.revision,
        champion=status.champion,
        problem=status.problem,
        canary=None if canary is None else CanaryFacts.model_validate(asdict(canary)),
        condemned="" if condemned is None else f"{condemned.generation}: {condemned.verdict}",
    )


def _discovery_facts(watch: Watch) -> DiscoveryFacts:
    status = watch.status()
    return DiscoveryFacts(learnt=status.learnt, announcements=status.channel)


def _catalogue_facts(status: CatalogueStatus | None) -> CatalogueFacts | None:
    if status is None:
        return None
    live = status.live
    return CatalogueFacts(
        sequence=live.sequence,
        added=live.added_rows,
        deleted=live.deleted_rows,
        log_bytes=live.log_bytes,
        merging=live.merging,
        merges=live.merges,
        last_merge_s=live.last_merge_s,
        merge_failed=bool(live.merge_error),
    )
