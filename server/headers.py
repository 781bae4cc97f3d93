"""Headers of every answer, one ASGI middleware per concern.

RequestIds       X-Request-ID: the client's if it is sane, else a new one
ServerTiming     Server-Timing: the pipeline's stages and the total
Draining         Connection: close once the process is told to end
SecurityHeaders  nosniff, no framing, no referrer; a Content-Security-Policy unless the page set one
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_BYTES = 12
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}\Z")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_STRICT_POLICY = "default-src 'none'; frame-ancestors 'none'"


class RequestIds:
    """Gives the request an id (`scope["onesearch.request_id"]`) and its time of arrival."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given_request_id(scope) or secrets.token_hex(REQUEST_ID_BYTES)
        scope["onesearch.request_id"] = request_id
        scope["onesearch.arrived"] = time.monotonic()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class ServerTiming:
    """Server-Timing from `scope["onesearch.timings_ms"]`, which a route may set, and the total."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_timing(message: Message) -> None:
            if message["type"] == "http.response.start":
                stages: Mapping[str, float] = scope.get("onesearch.timings_ms", {})
                total_ms = (time.monotonic() - arrived(scope)) * 1000
                parts = [f"{name};dur={stages[name]:.2f}" for name in stages if name != "total"]
                parts.append(f"total;dur={total_ms:.2f}")
                MutableHeaders(scope=message)["Server-Timing"] = ", ".join(parts)
            await send(message)

        await self._app(scope, receive, send_with_timing)


class Draining:
    """Connection: close while `draining()`, so that clients go elsewhere next."""

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._draining():
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_with_close)


class SecurityHeaders:
    """What a browser needs to be told so that an answer is never run, framed or sniffed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_SECURITY_HEADERS)
                headers.setdefault("Content-Security-Policy", _STRICT_POLICY)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


def arrived(scope: Mapping[str, Any]) -> float:
    """Monotonic time at which the request arrived."""
    return float(scope["onesearch.arrived"])


def _given_request_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode("ascii") if _SANE_REQUEST_ID.match(value) else None
    return None
