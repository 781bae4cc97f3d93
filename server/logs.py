"""Structured logs: one JSON object a line, with request ids. Query texts only where a setting says.

`make_logger` gives the logger that is handed down; `forward_standard_logging` sends what uvicorn
and the libraries log the same way.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

import orjson
import structlog
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from server.errors import request_id_of
from server.headers import arrived, status_of
from server.metrics import route_of

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})


def make_logger(level: str = "info", stream: TextIO | None = None) -> FilteringBoundLogger:
    """A logger that writes JSON lines to `stream` (standard error unless given)."""
    return structlog.wrap_logger(
        structlog.PrintLogger(stream or sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(_dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        cache_logger_on_first_use=True,
    )


def forward_standard_logging(log: FilteringBoundLogger) -> None:
    """Route the standard library's logging (warnings and worse; uvicorn's from info) to `log`."""
    root = logging.getLogger()
    root.handlers = [_Forward(log)]
    root.setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)
    logging.captureWarnings(True)


class AccessLog:
    """ASGI middleware: one line for each request; probes and scrapes only at debug level."""

    def __init__(self, app: ASGIApp, log: FilteringBoundLogger, with_queries: bool) -> None:
        self._app = app
        self._log = log
        self._with_queries = with_queries

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._write(scope)

    def _write(self, scope: Scope) -> None:
        facts: dict[str, Any] = {
            "request_id": request_id_of(scope),
            "method": scope["method"][:16],
            "route": route_of(scope),
            "status": status_of(scope),
            "duration_ms": round((time.monotonic() - arrived(scope)) * 1000, 2),
        }
        if trace_id := scope.get("onesearch.trace_id"):
            facts["trace_id"] = trace_id
        # Whose key it was, and why it was refused: both are ours, not the client's text.
        for name in ("client", "problem"):
            if said := scope.get(f"onesearch.{name}"):
                facts[name] = said
        facts |= scope.get("onesearch.facts", {})
        if not self._with_queries:
            facts.pop("query", None)
        write = self._log.debug if facts["route"] in QUIET_ROUTES else self._log.info
        write("request", **facts)


class _Forward(logging.Handler):
    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        facts: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            facts["exc_info"] = record.exc_info
        self._log.log(record.levelno, record.getMessage(), **facts)


def _dumps(event: Any, **_: Any) -> str:
    """orjson refuses lone surrogates; a log line must not fail on them."""
    try:
        return orjson.dumps(event, default=str).decode()
    except orjson.JSONEncodeError:
        safe = {str(key): repr(value) for key, value in event.items()}
        return orjson.dumps(safe).decode()
