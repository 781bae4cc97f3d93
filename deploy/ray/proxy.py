"""What Serve's HTTP proxies add: an answer where a replica died before it gave one.

Serve answers such a request with 500 and one line of text, which is what a client must not repeat.
With `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray.proxy:middlewares` in the environment of
the nodes it is a 503 that says so, like those of the gateway; searches may be sent again.
"""

from __future__ import annotations

import orjson
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOST = {
    "type": "/problems/not-ready",
    "title": "The server is not ready",
    "status": 503,
    "detail": "the replica that had this request ended before it answered; ask again",
}


class AnswerForLost:
    """ASGI middleware: 503 where nobody answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = scope["type"] != "http"

        async def watch(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        await self._app(scope, receive, watch)
        if not answered:
            headers = [(b"content-type", b"application/problem+json"), (b"retry-after", b"0")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": orjson.dumps(LOST)})


def middlewares() -> list[Middleware]:
    """What Serve asks for when a proxy starts."""
    return [Middleware(AnswerForLost)]
