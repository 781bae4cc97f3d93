"""A gateway in front of nothing, for `onesearch bench gateway`: `python -m` this module KIND FILE.

`gateway`  the application of `onesearch serve` with its default settings, over a searcher that
           answers at once with ten hits
`bare`     an ASGI function on the same HTTP server that sends such an answer without reading the
           request

Both answer on a free port of 127.0.0.1, whose number is written into FILE, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from decoding.engine import EngineStats
from index.errors import ConfigError
from index.live.changes import Change
from server import settings as settings_of
from server.app import create_app
from server.cli.serve import bind, loop_factory
from server.connections import server_config
from server.logs import forward_standard_logging, make_logger
from server.schemas import Hit, Item, SearchRequest, SearchResponse
from server.search import CatalogueStatus, ChangeOutcome, Serving

HITS = 10
KINDS = ("gateway", "bare")


class NullSearcher:
    """Answers at once, always with the same hits."""

    def __init__(self) -> None:
        self._hits = [
            Hit(
                item_id=f"i{number:05d}",
                title=f"Larkheel Waterproof Nubuck Walking Boots, Model {number} - Green",
                brand="Larkheel",
                category=["Shoes & Bags", "Shoes", "Hiking Boots"],
                color=["green"],
                price=90.99,
                stock=12,
                sid=f"<a_33><b_{number}>",
                score=6.8048 - number / 7,
            )
            for number in range(HITS)
        ]

    async def search(
        self, request: SearchRequest, request_id: str, deadline: float
    ) -> SearchResponse:
        """The same hits, as the pipeline would give them."""
        return SearchResponse(
            request_id=request_id,
            query=request.query,
            hits=self._hits[: request.limit],
            total_candidates=622,
            model_version="null",
            index_version="null",
            degraded=[],
            complete=True,
            notes=[],
            simulated=True,
            timings_ms={"prepare": 0.01, "engine": 0.01, "rank": 0.01, "total": 0.03},
        )

    async def item(self, item_id: str) -> Item | None:
        """There is none."""

    async def change(self, changes: Sequence[Change]) -> ChangeOutcome:
        """Takes nothing."""
        return ChangeOutcome(0, 0, (), "null")

    def serving(self) -> Serving:
        """Something."""
        return Serving("null", "null", True, HITS)

    def catalogue_status(self) -> CatalogueStatus | None:
        """It does not change."""

    def engine_stats(self) -> EngineStats:
        """There is no engine."""
        return EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0)

    async def close(self) -> None:
        """There is nothing to close."""


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """What HTTP itself costs: an answer as long as the gateway's."""
    if scope["type"] != "http":
        return
    body = _BARE_BODY
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_BARE_BODY = orjson.dumps({"degraded": [], "filling": "x" * 2500})


def _application(kind: str) -> tuple[ASGIApp, str]:
    """The application, and whether uvicorn runs its lifespan."""
    if kind == "bare":
        return bare, "off"
    settings = settings_of.load(None).model_copy(update={"events": False})
    log = make_logger(settings.log_level)
    forward_standard_logging(log)
    return create_app(NullSearcher(), settings, log=log), "on"


def main(arguments: Sequence[str]) -> None:
    """Raises ConfigError for anything but KIND FILE."""
    if len(arguments) != 2 or arguments[0] not in KINDS:
        raise ConfigError(f"give one of {', '.join(KINDS)}, and a file for the port")
    app, lifespan = _application(arguments[0])
    with (
        bind("127.0.0.1", 0) as listener,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        config: Any = server_config(app, shutdown_s=1)
        config.lifespan = lifespan
        gc.collect()
        gc.freeze()
        # Whoever connects from here on waits until the loop runs.
        Path(arguments[1]).write_text(str(listener.getsockname()[1]), encoding="utf-8")
        runner.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main(sys.argv[1:])
