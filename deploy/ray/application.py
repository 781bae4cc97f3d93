"""The Ray Serve application: gateways by the length of their queue, keyword workers, one registry.

    serve run deploy.ray.application:application        from the repository's root

A gateway replica is the ASGI application of `onesearch serve`, opened in the replica by the same
settings; it follows the registry and loads, tries and promotes generations as any gateway does.
Serve asks it for its health, which is what /readyz says; when Serve ends a replica it first stops
sending requests there, waits for those in work, and then ends the application's lifespan.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy.ray.scale import replica_environment, replica_settings, scale_of_environment
from server.assembly import assemble, chosen
from server.cli.worker import chosen_snapshot, work
from server.logs import forward_standard_logging
from server.settings import Settings

ENDING_SLACK_S = 5.0
"""Of a replica, on top of what the settings grant open requests."""
HEALTH_TIMEOUT_S = 10.0
"""A replica that is silent for so long, three times, is ended: until then it gets requests."""
CHAMPION_PERIOD_S = 2.0
"""Between two looks of a worker at which snapshot is served."""


class OpenedLater:
    """An ASGI application that is put together when its server starts, on its server's loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app: FastAPI | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            served = await asyncio.to_thread(chosen, self._settings)
            self._app = await assemble(self._settings, served)
            forward_standard_logging(self._app.state.gateway.log)
        assert self._app is not None, "the server starts the lifespan before it sends requests"
        await self._app(scope, receive, send)

    def check(self) -> None:
        """Raises Problem where /readyz would say 503."""
        assert self._app is not None
        self._app.state.gateway.serving()


def open_later() -> ASGIApp:
    """Called in the replica: the settings are those of its environment."""
    return OpenedLater(replica_settings())


@serve.deployment
@serve.ingress(open_later)
class Gateway:
    """A replica. What it needs of Serve beside ASGI."""

    def __init__(self, *workers: DeploymentHandle) -> None:
        """`workers`: deployments that belong to the application; no request goes there."""

    async def check_health(self) -> None:
        """Raises where requests should go elsewhere; Serve then starts another in its place."""
        self.app.check()


@serve.deployment
class KeywordWorker:
    """`onesearch worker` in a replica. When another snapshot is served, its jobs in hand are
    finished and it goes on with that one."""

    async def __init__(self) -> None:
        self._ending = False
        self._stop = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self._settings = replica_settings()
        self._work = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while not self._ending:
            snapshot = await asyncio.to_thread(chosen_snapshot, self._settings)
            settings = self._settings.model_copy(update={"snapshot": snapshot})
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(snapshot))
                await work(settings, False, None, 0.0, self._stop)
                watching.cancel()
            if not self._ending:
                self._stop.clear()

    async def _watch(self, snapshot: Path | None) -> None:
        """Stop the work when it is about another snapshot than the one that is served."""
        # A registry is looked at, as in `server.watch`: not every one has a Redis that announces.
        while await asyncio.to_thread(chosen_snapshot, self._settings) == snapshot:  # noqa: ASYNC110
            await asyncio.sleep(CHAMPION_PERIOD_S)
        self._stop.set()

    async def check_health(self) -> None:
        """Raises what ended the work."""
        if self._work is not None and self._work.done():
            self._work.result()
            raise RuntimeError("the keyword worker has ended")

    async def __del__(self) -> None:
        self._ending = True
        self._stop.set()
        if self._work is not None:
            await asyncio.wait([self._work])


def application(args: dict[str, str] | None = None) -> Application:
    """The application of this process's environment. Raises ConfigError for what cannot be."""
    if args:
        raise ValueError(f"settings come from the environment, not from arguments: {sorted(args)}")
    scale, settings = scale_of_environment(), replica_settings()
    options = {"runtime_env": {"env_vars": replica_environment(settings, scale)}}
    gateway = Gateway.options(
        name="gateway",
        autoscaling_config={
            "min_replicas": scale.min_gateways,
            "max_replicas": scale.max_gateways,
            "target_ongoing_requests": scale.searches_per_gateway,
            "upscale_delay_s": scale.upscale_delay_s,
            "downscale_delay_s": scale.downscale_delay_s,
            "look_back_period_s": scale.look_back_s,
        },
        max_ongoing_requests=scale.ongoing_per_gateway,
        max_queued_requests=scale.queued,
        health_check_period_s=scale.health_period_s,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=settings.shutdown_s + ENDING_SLACK_S,
        ray_actor_options={
            "num_cpus": scale.gateway_cpus,
            "num_gpus": scale.gateway_gpus,
            **options,
        },
    )
    if settings.keywords == "off" or scale.workers == 0:
        return gateway.bind()
    worker = KeywordWorker.options(
        name="keyword-worker",
        num_replicas=scale.workers,
        health_check_period_s=scale.health_period_s,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=settings.keyword_drain_s + ENDING_SLACK_S,
        ray_actor_options={"num_cpus": scale.worker_cpus, **options},
    )
    return gateway.bind(worker.bind())
