"""CORS: which web pages of other origins a browser lets ask this server.

Off unless origins are listed, and then for /v1 alone, with GET and POST: pages search and tell what
their users did. /admin and changes of the catalogue are for programs, which need no CORS. Cookies
play no part here: what lets a page in is its own API key.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.access import is_below

API_FOLDER = "/v1"
METHODS = ("GET", "POST")
HEADERS = ("Authorization", "Content-Type", "X-Request-ID", "traceparent")
SEEN_HEADERS = ("X-Request-ID", "Server-Timing", "Retry-After")
PREFLIGHT_S = 600


class CrossOrigin:
    """ASGI middleware: Starlette's CORS, where it is wanted."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._open = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=HEADERS,
            expose_headers=SEEN_HEADERS,
            max_age=PREFLIGHT_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_below(API_FOLDER, scope["path"]):
            await self._open(scope, receive, send)
        else:
            await self._app(scope, receive, send)
