"""The ASGI application: middleware, error handlers and routes around one `Searcher`.

A request passes, outermost first: Envelope → TraceRequests (where there are traces) →
RequestMetrics → AccessLog → UnexpectedErrors → CatalogueDoor → EventDoor → AdminDoor → BodyLimit →
Admission → routes. Where the settings want them, CrossOrigin precedes RequestMetrics, and KeyDoor
and RateLimit come before the other doors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI
from starlette.middleware import Middleware
from structlog.typing import FilteringBoundLogger

from server import errors
from server.access import AdminDoor, CatalogueDoor, EventDoor
from server.admission import Admission
from server.changes import BODIES
from server.events.behaviour import Behaviour
from server.events.wire import SentEvents
from server.gateway import Gateway, deciding
from server.headers import Envelope
from server.limits import BodyLimit
from server.logs import AccessLog, make_logger
from server.metrics import Metrics, PassedOn, RequestMetrics
from server.pipeline import Pipeline
from server.processes import ProcessCollector
from server.redis.announcements import announcements_of
from server.rollout import Rollout
from server.rollout_metrics import RolloutCollector
from server.routes import admin, events, health, items, models, pages, search
from server.schemas import DEGRADATIONS, ProblemDetails
from server.search import Searcher
from server.security import Security
from server.settings import Settings
from server.traced_requests import TraceRequests
from server.upkeep import Upkeep, UpkeepCollector
from server.watch import Watch
from server.watch_metrics import WatchCollector

DESCRIPTION = (
    "Generative search over a product catalogue: a query becomes semantic IDs of items that exist, "
    "the items are ranked, and each answer says which model and index gave it. "
    "Every error is `application/problem+json`."
)


def create_app(
    searcher: Searcher,
    settings: Settings,
    *,
    metrics: Metrics | None = None,
    log: FilteringBoundLogger | None = None,
    rollout: Rollout | None = None,
    behaviour: Behaviour | None = None,
) -> FastAPI:
    """The application; the searcher is closed when the server ends. With `rollout` it follows a
    registry; with `behaviour` it takes events and writes exposures."""
    metrics = metrics or Metrics()
    log = log or make_logger(settings.log_level)
    upkeep = Upkeep(searcher, rollout, settings, log) if isinstance(searcher, Pipeline) else None
    watch = None if rollout is None else Watch(rollout, log, announcements_of(settings))
    gateway = Gateway(searcher, settings, metrics, log, rollout, behaviour, watch)
    security = Security(settings, metrics, log)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(security.running())
            if metrics.traces is not None:
                stack.push_async_callback(asyncio.to_thread, metrics.traces.close)
            if behaviour is not None:
                await stack.enter_async_context(behaviour.running())
            stack.push_async_callback(searcher.close)
            if rollout is not None:
                stack.push_async_callback(rollout.close)
            if watch is not None:
                await stack.enter_async_context(watch.running())
            if upkeep is not None:
                await stack.enter_async_context(upkeep.running())
            yield

    app = FastAPI(
        title="onesearch",
        version=version("onesearch"),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        middleware=[
            Middleware(Envelope, draining=lambda: gateway.draining),
            *([Middleware(TraceRequests, traces=metrics.traces)] if metrics.traces else []),
            *security.outside(),
            Middleware(RequestMetrics, metrics=metrics),
            Middleware(AccessLog, log=log, with_queries=settings.log_queries),
            Middleware(errors.UnexpectedErrors, log=log),
            *security.doors(),
            Middleware(CatalogueDoor, settings=settings),
            Middleware(EventDoor, settings=settings),
            Middleware(AdminDoor, settings=settings),
            Middleware(
                BodyLimit,
                max_bytes=settings.body_bytes,
                timeout_s=settings.body_timeout_s,
                catalogue_bytes=settings.catalogue_body_bytes,
                event_bytes=settings.event_body_bytes,
            ),
            Middleware(
                Admission,
                limit=settings.concurrent_requests,
                patience=settings.patience,
                retry_after_s=settings.retry_after_s,
                metrics=metrics,
            ),
        ],
    )
    app.state.gateway = gateway
    app.state.connection_guard = security.guard
    errors.install(app, log)
    for router in (
        search.router,
        items.router,
        events.router,
        models.router,
        health.router,
        pages.router,
    ):
        app.include_router(router)
    app.include_router(admin.router, dependencies=[Depends(deciding, scope="function")])
    _describe(app)
    for reason in DEGRADATIONS:
        metrics.degraded.labels(reason)
    metrics.observe(searcher, version("onesearch"))
    started = searcher.processes if isinstance(searcher, Pipeline) else dict[str, Sequence[int]]
    metrics.registry.register(ProcessCollector("gateway", started))
    if settings.engine == "vllm":
        metrics.registry.register(PassedOn("vllm:"))
    if rollout is not None:
        metrics.registry.register(RolloutCollector(rollout))
    if watch is not None:
        metrics.registry.register(WatchCollector(watch))
    if upkeep is not None:
        metrics.registry.register(UpkeepCollector(upkeep))
    return app


def _describe(app: FastAPI) -> None:
    """OpenAPI: our ProblemDetails in place of FastAPI's own form of validation error, and the
    bodies that routes read themselves."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            schemas = schema["components"]["schemas"]
            schemas.pop("HTTPValidationError", None)
            schemas.pop("ValidationError", None)
            for model in (ProblemDetails, SentEvents, *BODIES):
                own = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= own.pop("$defs", {})
                schemas[model.__name__] = own
        return generate()

    app.openapi = openapi
