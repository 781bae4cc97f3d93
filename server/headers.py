"""The outermost ASGI middleware: who the request is, when it came, and the headers of every answer.

X-Request-ID             the client's if it is sane, else a new one
Server-Timing            the pipeline's stages (`scope["onesearch.timings_ms"]`) and the total
Connection: close        once the process is told to end, so that clients go elsewhere next
security headers         nosniff, no framing, no referrer: an answer is never run, framed, sniffed
Content-Security-Policy  and Cache-Control, unless the page set its own

One middleware and not one for each, because each costs every request. What is inside learns the
status of the answer from `status_of`, without wrapping `send` again.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_BYTES = 12
UNANSWERED_STATUS = 500
"""Of a request whose answer did not begin: what breaks."""
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}\Z")
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_OWN_WAY = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
"""Where the answer does not say otherwise."""


class Envelope:
    """Sets `scope["onesearch.request_id"]`, the time of arrival and, when the answer begins, its
    status; adds the headers. `draining()`: whether the process is told to end."""

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given_request_id(scope) or secrets.token_hex(REQUEST_ID_BYTES)
        scope["onesearch.request_id"] = request_id
        scope["onesearch.arrived"] = time.monotonic()

        async def send_in_envelope(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["onesearch.status"] = message["status"]
                headers: list[tuple[bytes, bytes]] = [*message.get("headers", ())]
                names = {name for name, _ in headers}
                headers += _SECURITY_HEADERS
                headers += [header for header in _OWN_WAY if header[0] not in names]
                if self._draining():
                    headers = [header for header in headers if header[0] != b"connection"]
                    headers.append((b"connection", b"close"))
                headers.append((b"server-timing", _server_timing(scope)))
                headers.append((b"x-request-id", request_id.encode()))
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, send_in_envelope)


def arrived(scope: Mapping[str, Any]) -> float:
    """Monotonic time at which the request arrived."""
    return scope["onesearch.arrived"]


def status_of(scope: Mapping[str, Any]) -> int:
    """The status of the answer that began, else that of one that breaks."""
    return scope.get("onesearch.status", UNANSWERED_STATUS)


def has_begun(scope: Mapping[str, Any]) -> bool:
    """Whether the answer has: then it can only be broken off."""
    return "onesearch.status" in scope


def _server_timing(scope: Scope) -> bytes:
    stages: Mapping[str, float] = scope.get("onesearch.timings_ms", {})
    parts = [f"{name};dur={ms:.2f}" for name, ms in stages.items() if name != "total"]
    parts.append(f"total;dur={(time.monotonic() - arrived(scope)) * 1000:.2f}")
    return ", ".join(parts).encode()


def _given_request_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode("ascii") if _SANE_REQUEST_ID.match(value) else None
    return None
