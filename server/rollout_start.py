"""A server's start on a registry: what is served first, and what follows the registry."""

from __future__ import annotations

from structlog.typing import FilteringBoundLogger

from server.choice import Registered, settings_for
from server.context import UserContexts
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.rollout import Rollout
from server.settings import Settings
from server.start import start_pipeline


async def start_rollout(
    settings: Settings,
    registered: Registered,
    metrics: Metrics,
    log: FilteringBoundLogger,
    contexts: UserContexts | None = None,
) -> tuple[Pipeline, Rollout]:
    """Serve a registry's generation: `start_pipeline`, and what follows the registry.

    Raises as `start_pipeline` does, and ConfigError for golden queries that cannot be read.
    """
    choice = registered.choice
    if choice.problems:
        log.error(
            "registry damaged",
            serving=choice.alias,
            generation=choice.record.version,
            problems=list(choice.problems),
        )
    if registered.lease is None:
        log.warning("generation not pinned", detail=registered.unpinned)
    own = settings_for(settings, registered.registry, choice.record)
    pipeline = await start_pipeline(own, choice.snapshot, choice.checkpoint, metrics, log, contexts)
    try:
        rollout = Rollout(registered, pipeline, settings, log)
        await rollout.resume()
        return pipeline, rollout
    except BaseException:
        await pipeline.close()
        raise
