"""/admin/generations: see, load, try on a share of the users, promote and roll back the generations
of a registry.

A promotion is made in the registry, so other servers that follow it take the same generation soon
after. Who may come here is decided by `server.access.AdminDoor`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, ConfigDict, Field

from index.errors import ConfigError, OnesearchError
from models.registry.canary import MAX_NAME_CHARACTERS
from models.registry.promotion import AliasMoved
from models.registry.registry import Provenance
from server.canary import shadow_facts
from server.errors import Problem
from server.gateway import gateway_of
from server.golden import Golden
from server.rollout import Rollout
from server.rollout_status import Condemned
from server.routes.health import generation_facts
from server.schemas import GenerationFacts, Identifier, problem_responses

router = APIRouter(tags=["admin"])
MAX_REASON_CHARACTERS = 1_000
_SEEING = problem_responses(403, 409, 500)
_CHANGING = problem_responses(400, 403, 404, 408, 409, 413, 415, 422, 500)


class Decision(BaseModel):
    """Whose decision it is, and why; both go into the registry's history."""

    model_config = ConfigDict(extra="forbid", strict=True)

    who: Identifier | None = Field(None, description="the server's own user unless given")
    why: str = Field("", max_length=MAX_REASON_CHARACTERS)
    expected_champion: Identifier | None = Field(
        None, description="refuse if another generation is champion"
    )

    def provenance(self) -> Provenance:
        return Provenance(self.who or "", self.why)


class CanaryDecision(Decision):
    """How many users it is about; `experiment` decides which."""

    share: float = Field(gt=0, lt=1, description="of the users; 0.05 is one in twenty")
    experiment: str = Field(
        "",
        max_length=MAX_NAME_CHARACTERS,
        description="that of the running canary, or one made of the version, unless given",
    )
    expected_challenger: Identifier | None = Field(
        None,
        description="refuse if another generation is challenger; names the one whose canary this "
        "may end",
    )


class GoldenFacts(BaseModel):
    """What came of the golden queries. `itself`: titles that found their own item."""

    queries: int
    answered: int
    itself: int | None
    seconds: float


class LoadedGeneration(BaseModel):
    """A generation that is in this server's memory."""

    version: str
    model_version: str
    index_version: str
    live: bool
    load_seconds: float = Field(description="0 for what was loaded at the start")
    golden: GoldenFacts | None = Field(description="null where it was not tried")


class TrialFacts(BaseModel):
    """A generation whose searches are compared with another's, and may be taken back."""

    generation: str
    against: str
    searches: int
    before: int = Field(description="searches of the other one")
    looks: int
    seconds_left: float | None = Field(description="null as long as a canary lasts")


class CondemnedFacts(BaseModel):
    """A generation that was found clearly worse, and what was done."""

    action: Literal["rollback", "canary-stop"]
    generation: str
    rule: Literal["failed", "degraded", "slow"]
    detail: str
    share: float
    searches: int
    before: float = Field(description="the other one's share")
    searches_before: int
    allowed: float = Field(description="the share that would be no worse")
    limit_ms: float | None = Field(description="what is slow; null for other rules")
    when: float = Field(description="Unix time")
    problem: str = Field(description='why it could not be done, else ""')


class ShadowFacts(BaseModel):
    """Searches that were asked of the challenger too. `overlap`, `rbo`: means over `compared`."""

    offered: int
    compared: int
    overlap: float
    rbo: float
    illegal: int
    failed: int
    latency_ratio: float | None = Field(description="challenger over champion, each alone")
    dropped: int


class RolloutFacts(BaseModel):
    """What this server serves, what it has in memory, and how that does."""

    live: GenerationFacts
    loaded: list[LoadedGeneration]
    trials: list[TrialFacts]
    condemned: CondemnedFacts | None
    shadow: ShadowFacts | None
    last_change_ms: dict[str, float] = Field(
        description="parts of the last change of what is served, in the order in which they ended"
    )


class KnownGeneration(BaseModel):
    """A generation of the registry."""

    version: str
    aliases: list[str]
    snapshot: str
    checkpoint: str
    codec_id: str
    created: float = Field(description="Unix time")
    simulated: bool
    metrics: dict[str, Any]
    who: str
    why: str


class KnownGenerations(RolloutFacts):
    """All of the registry's, newest first; `damaged`: those that cannot be read, and why."""

    generations: list[KnownGeneration]
    damaged: dict[str, str]


@router.get("/admin/generations", responses=_SEEING, summary="The registry's generations")
async def generations(request: Request) -> KnownGenerations:
    """What there is, which aliases name it, what this server serves."""
    rollout = _rollout_of(request)
    with _problems(rollout):
        records, damaged = await asyncio.to_thread(rollout.registry.records)
        aliases = await asyncio.to_thread(rollout.registry.aliases)
    known = [
        KnownGeneration(
            version=record.version,
            aliases=list(aliases.of(record.version)),
            snapshot=record.pairing.snapshot,
            checkpoint=record.pairing.checkpoint,
            codec_id=record.pairing.codec_id,
            created=record.created,
            simulated=record.pairing.simulated,
            metrics=dict(record.metrics),
            who=record.who,
            why=record.why,
        )
        for record in records
    ]
    facts = _facts(rollout)
    return KnownGenerations(
        **dict(facts),
        generations=known,
        damaged={version: rollout.told(reason) for version, reason in damaged.items()},
    )


@router.post(
    "/admin/generations/{version}:load", responses=_CHANGING, summary="Load a generation beside"
)
async def load(
    version: str, request: Request, body: Annotated[Decision | None, Body()] = None
) -> RolloutFacts:
    """Verify, load and try a generation, so that its promotion is only a flip."""
    rollout = _rollout_of(request)
    with _problems(rollout):
        await rollout.load(await _resolved(rollout, version))
    return _facts(rollout)


@router.post(
    "/admin/generations/{version}:promote", responses=_CHANGING, summary="Promote a generation"
)
async def promote(
    version: str, request: Request, body: Annotated[Decision | None, Body()] = None
) -> RolloutFacts:
    """Load it if it is not loaded, make it champion, serve it; the champion becomes previous."""
    rollout, decision = _rollout_of(request), body or Decision.model_validate({})
    with _problems(rollout):
        found, expected = await _resolved(rollout, version), decision.expected_champion
        if expected is not None:
            expected = await _resolved(rollout, expected)
        await rollout.promote(found, decision.provenance(), expected)
    return _facts(rollout)


@router.post(
    "/admin/generations/{version}:rollback",
    responses=_CHANGING,
    summary="Roll back from a generation",
)
async def rollback(
    version: str, request: Request, body: Annotated[Decision | None, Body()] = None
) -> RolloutFacts:
    """From this one, the champion, back to previous; the two change places."""
    rollout, decision = _rollout_of(request), body or Decision.model_validate({})
    with _problems(rollout):
        await rollout.roll_back(await _resolved(rollout, version), decision.provenance())
    return _facts(rollout)


@router.post(
    "/admin/generations/{version}:canary",
    responses=_CHANGING,
    summary="Let a generation answer a share of the users",
)
async def canary(
    version: str, request: Request, body: Annotated[CanaryDecision, Body()]
) -> RolloutFacts:
    """Load it if it is not loaded, make it challenger, give it its share, here and everywhere."""
    rollout = _rollout_of(request)
    with _problems(rollout):
        found = await _resolved(rollout, version)
        champion, challenger = [
            None if name is None else await _resolved(rollout, name)
            for name in (body.expected_champion, body.expected_challenger)
        ]
        by = body.provenance()
        await rollout.canary(found, body.share, body.experiment, by, champion, challenger)
    return _facts(rollout)


@router.post(
    "/admin/generations/{version}:canary-stop", responses=_CHANGING, summary="End a canary"
)
async def canary_stop(
    version: str, request: Request, body: Annotated[Decision | None, Body()] = None
) -> RolloutFacts:
    """Everybody is answered by the champion again; the generation stays challenger."""
    rollout, decision = _rollout_of(request), body or Decision.model_validate({})
    with _problems(rollout):
        await rollout.stop_canary(await _resolved(rollout, version), decision.provenance())
    return _facts(rollout)


def _rollout_of(request: Request) -> Rollout:
    rollout = gateway_of(request).rollout
    if rollout is None:
        raise Problem("no-registry", "directories were named, or there is no registry")
    return rollout


async def _resolved(rollout: Rollout, name: str) -> str:
    try:
        return await asyncio.to_thread(rollout.registry.resolve, name)
    except ConfigError:
        raise Problem("generation-not-found", "the registry has no such generation") from None


@contextmanager
def _problems(rollout: Rollout) -> Generator[None, None, None]:
    """What the registry and the engine refuse, as problems that name file and reason."""
    try:
        yield
    except AliasMoved as error:
        raise Problem("champion-moved", rollout.told(str(error))) from None
    except OnesearchError as error:
        raise Problem("generation-refused", rollout.told(str(error))) from None


def _facts(rollout: Rollout) -> RolloutFacts:
    live, *_ = loaded = rollout.loaded
    status = rollout.status()
    return RolloutFacts(
        live=generation_facts(rollout),
        loaded=[
            LoadedGeneration(
                version=one.version,
                model_version=one.generation.model_version,
                index_version=one.generation.view.version,
                live=one is live,
                load_seconds=round(one.seconds, 3),
                golden=_golden_facts(one.golden),
            )
            for one in loaded
        ],
        trials=[TrialFacts.model_validate(asdict(trial)) for trial in status.trials],
        condemned=_condemned_facts(status.condemned),
        shadow=None if status.shadow is None else ShadowFacts(**shadow_facts(status.shadow)),
        last_change_ms=dict(rollout.last_change_ms),
    )


def _condemned_facts(condemned: Condemned | None) -> CondemnedFacts | None:
    if condemned is None:
        return None
    verdict = asdict(condemned.verdict)
    del verdict["level"]
    return CondemnedFacts(
        action=condemned.action,
        generation=condemned.generation,
        detail=str(condemned.verdict),
        when=condemned.when,
        problem=condemned.problem,
        **verdict,
    )


def _golden_facts(golden: Golden | None) -> GoldenFacts | None:
    return None if golden is None else GoldenFacts.model_validate(asdict(golden))
