"""The body of a request: read before the request is let in, within limits of size and time.

So a slow sender holds no place, and nothing below ever waits for a body. Nothing is ever unpacked:
a body that says it is compressed is refused, however small it is.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access import changes_catalogue, sends_events
from server.errors import Problem, refuse


class BodyLimit:
    """Reads the body, at most `max_bytes` within `timeout_s`, and hands it on as one message.

    Catalogue changes may bring `catalogue_bytes`, events `event_bytes`. The body is in
    `scope["onesearch.body"]` too."""

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        timeout_s: float,
        catalogue_bytes: int,
        event_bytes: int,
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._catalogue_bytes = catalogue_bytes
        self._event_bytes = event_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not _announces_body(scope):
            await self._app(scope, receive, send)
            return
        max_bytes = self._most_of(scope)
        try:
            _refuse_announced(scope, max_bytes)
            async with asyncio.timeout(self._timeout_s):
                body = await _read(receive, max_bytes)
        except TimeoutError:
            problem = Problem(
                "request-timeout",
                f"the body did not arrive within {self._timeout_s:g} s",
                headers={"Connection": "close"},
            )
            await refuse(problem, scope, receive, send)
            return
        except Problem as problem:
            await refuse(problem, scope, receive, send)
            return
        if body is None:
            return
        scope["onesearch.body"] = body
        await self._app(scope, _replay(body, receive), send)

    def _most_of(self, scope: Scope) -> int:
        if changes_catalogue(scope):
            return self._catalogue_bytes
        return self._event_bytes if sends_events(scope) else self._max_bytes


def _refuse_announced(scope: Scope, max_bytes: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise Problem(
                "unsupported-media-type",
                "send the body as it is, without Content-Encoding",
                headers={"Accept-Encoding": "identity", "Connection": "close"},
            )
        if name == b"content-length" and value.isdigit() and int(value) > max_bytes:
            raise _too_large(max_bytes)


async def _read(receive: Receive, max_bytes: int) -> bytes | None:
    """The whole body, or None when the client has gone."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_large(max_bytes: int) -> Problem:
    return Problem(
        "body-too-large",
        f"at most {max_bytes} bytes are taken",
        headers={"Connection": "close"},
    )


def _announces_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, then whatever the server says next."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
