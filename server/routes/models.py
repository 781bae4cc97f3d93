"""GET /v1/models: what answers searches."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from server.gateway import gateway_of
from server.generation import CHALLENGER, CHAMPION
from server.routes.health import generation_facts
from server.schemas import GenerationFacts, problem_responses

router = APIRouter(tags=["search"])


class ServedModel(BaseModel):
    """A generation that answers: the live one, and a canary's challenger. `generation`: null where
    directories are served, not a registry. `share`: of the users."""

    model_version: str
    index_version: str
    items: int
    simulated: bool
    engine: str
    generation: GenerationFacts | None
    arm: str | None = Field(default=None, description="of a canary: champion or challenger")
    share: float = 1.0


class ServedModels(BaseModel):
    """One for each model that searches may be answered by."""

    models: list[ServedModel]


@router.get("/v1/models", responses=problem_responses(503), summary="What answers searches")
async def models(request: Request) -> ServedModels:
    """Checkpoint, snapshot and generation."""
    gateway = gateway_of(request)
    serving = gateway.serving()
    rollout = gateway.rollout
    facts = None if rollout is None else generation_facts(rollout)
    live = ServedModel(
        model_version=serving.model_version,
        index_version=serving.index_version,
        items=serving.items,
        simulated=serving.simulated,
        engine=gateway.settings.engine,
        generation=facts,
    )
    canary = None if facts is None else facts.canary
    if rollout is None or canary is None or not canary.served:
        return ServedModels(models=[live])
    live = live.model_copy(update={"arm": CHAMPION, "share": 1 - canary.share})
    generation = next(one.generation for one in rollout.loaded if one.version == canary.generation)
    view = generation.view
    beside = ServedModel(
        model_version=generation.model_version,
        index_version=view.version,
        items=view.n_items,
        simulated=generation.simulated,
        engine=gateway.settings.engine,
        generation=None,
        arm=CHALLENGER,
        share=canary.share,
    )
    return ServedModels(models=[live, beside])
