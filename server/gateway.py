"""What every route reaches through its request: the search, the settings, the counters."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import Request
from structlog.typing import FilteringBoundLogger

from server.errors import Problem
from server.events.behaviour import Behaviour
from server.metrics import Metrics
from server.rollout import Rollout
from server.search import Searcher, Serving
from server.settings import Settings
from server.watch import Watch


@dataclass(slots=True)
class Gateway:
    """One process's parts. `rollout`: where a registry's generations are served. `behaviour`: where
    events are taken or exposures written. `watch`: of the registry. `draining` turns true once,
    when the process is told to end."""

    searcher: Searcher
    settings: Settings
    metrics: Metrics
    log: FilteringBoundLogger
    rollout: Rollout | None = None
    behaviour: Behaviour | None = None
    watch: Watch | None = None
    draining: bool = False

    def serving(self) -> Serving:
        """What is being served; a 503 Problem while there is nothing."""
        serving = self.searcher.serving()
        if serving is None:
            raise Problem(
                "not-ready",
                "no generation is loaded",
                retry_after_s=self.settings.retry_after_s,
            )
        return serving


def gateway_of(request: Request) -> Gateway:
    """The gateway that `create_app` put on the application."""
    return request.app.state.gateway


async def deciding(request: Request) -> AsyncGenerator[None, None]:
    """Dependency of routes that may change which generation is served."""
    watch = gateway_of(request).watch
    if watch is None or request.method == "GET":
        yield
        return
    with watch.deciding():
        yield
