"""The span of each request that the gateway answers; see `server/traces.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import request_id_of
from server.headers import status_of
from server.logs import QUIET_ROUTES
from server.metrics import METHODS, OTHER, route_of
from server.traces import Traces

if TYPE_CHECKING:
    from opentelemetry.trace import Span

SERVER_ERRORS = 500


class TraceRequests:
    """ASGI middleware: a span for each request but probes and scrapes."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET_ROUTES:
            await self._app(scope, receive, send)
            return
        with self._traces.request(dict(_trace_headers(scope))) as span:
            scope["onesearch.trace_id"] = f"{span.get_span_context().trace_id:032x}"
            try:
                await self._app(scope, receive, send)
            finally:
                if span.is_recording():
                    self._tell(span, scope)

    def _tell(self, span: Span, scope: Scope) -> None:
        method = scope["method"] if scope["method"] in METHODS else OTHER
        route, status = route_of(scope), status_of(scope)
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "onesearch.request_id": request_id_of(scope),
            }
        )
        for name, fact in scope.get("onesearch.facts", {}).items():
            if fact is not None and (name != "query" or self._traces.with_queries):
                span.set_attribute(f"onesearch.{name}", fact)
        if status >= SERVER_ERRORS:
            from opentelemetry.trace import StatusCode

            span.set_status(StatusCode.ERROR)


def _trace_headers(scope: Scope) -> Iterator[tuple[str, str]]:
    for name, value in scope["headers"]:
        if name in (b"traceparent", b"tracestate"):
            yield name.decode(), value.decode("latin-1")
