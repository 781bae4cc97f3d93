"""GET /v1/models: what answers searches."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel

from server.gateway import gateway_of
from server.routes.health import generation_facts
from server.schemas import GenerationFacts, problem_responses

router = APIRouter(tags=["search"])


class ServedModel(BaseModel):
    """The live generation. `generation`: null where directories are served, not a registry."""

    model_version: str
    index_version: str
    items: int
    simulated: bool
    engine: str
    generation: GenerationFacts | None


class ServedModels(BaseModel):
    """One for each model that searches may be answered by."""

    models: list[ServedModel]


@router.get("/v1/models", responses=problem_responses(503), summary="What answers searches")
async def models(request: Request) -> ServedModels:
    """Checkpoint, snapshot and generation."""
    gateway = gateway_of(request)
    serving = gateway.serving()
    rollout = gateway.rollout
    live = ServedModel(
        model_version=serving.model_version,
        index_version=serving.index_version,
        items=serving.items,
        simulated=serving.simulated,
        engine=gateway.settings.engine,
        generation=None if rollout is None else generation_facts(rollout),
    )
    return ServedModels(models=[live])
