"""A gateway, put together from its settings: behaviour, generation, engine, application.

Whoever serves the application (`server.cli.serve`, a Ray Serve replica) starts and ends it by its
lifespan, on the event loop on which it was put together.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI

from server.app import create_app
from server.choice import Registered, choose_registered
from server.events.behaviour import start_behaviour
from server.generation import chosen_paths
from server.logs import make_logger
from server.metrics import Metrics
from server.rollout_start import start_rollout
from server.settings import Settings
from server.start import start_pipeline
from server.traces import start_traces


class Served(NamedTuple):
    """What is to be served. `registered`: where it is a registry's, which is then followed."""

    snapshot: Path
    checkpoint: Path
    registered: Registered | None


def chosen(settings: Settings) -> Served:
    """What the settings name. Raises ConfigError, ArtifactError when there is nothing to serve."""
    registered = choose_registered(settings)
    if registered is None:
        return Served(*chosen_paths(settings), None)
    return Served(registered.choice.snapshot, registered.choice.checkpoint, registered)


async def assemble(settings: Settings, served: Served) -> FastAPI:
    """The application, loaded and warm; `app.state.gateway` has its parts.

    Raises ConfigError, ArtifactError as the parts do.
    """
    metrics, log = Metrics(start_traces(settings, "gateway")), make_logger(settings.log_level)
    behaviour = await start_behaviour(settings, metrics, log)
    contexts = behaviour.contexts if behaviour is not None else None
    snapshot, checkpoint, registered = served
    rollout = None
    try:
        if registered is None:
            pipeline = await start_pipeline(settings, snapshot, checkpoint, metrics, log, contexts)
        else:
            pipeline, rollout = await start_rollout(settings, registered, metrics, log, contexts)
    except BaseException:
        if behaviour is not None:
            await behaviour.close()
        raise
    return create_app(
        pipeline, settings, metrics=metrics, log=log, rollout=rollout, behaviour=behaviour
    )
