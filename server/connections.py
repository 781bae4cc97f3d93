"""HTTP/1.1 connections: uvicorn's httptools protocol, with a limit on all that is not body, and on
the time that a client takes (`server.connection_guard`).

httptools itself reads heads without end. Here a request's line, headers, trailers and the framing
of its chunks may take `HEAD_BYTES` more than its body does; what is above that, or has not exactly
one `Host`, is refused with 400 and the connection is closed. A head that arrives in one read is
measured when it is complete, so at most one read more than the limit is ever in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.connection_guard import ConnectionGuard
from server.security_settings import (
    CONNECTIONS,
    HEAD_TIMEOUT_S,
    KEEP_ALIVE_S,
    TRUSTED_PROXIES,
)

HEAD_BYTES = 64 * 1024
"""Of a request's line and headers."""
_LINE_END_BYTES = 4
"""Of a header's line: what is neither name nor value."""


class RefusedHead(ValueError):
    """Raised inside the parser, which turns it into its own error and so into a 400."""


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *arguments: Any, guard: ConnectionGuard, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._guard = guard
        self._beside_body = 0
        """Bytes of the present request, less those of its body, twice."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """From now on a request is waited for."""
        super().connection_made(transport)
        self._guard.opened(self, len(self.connections))

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever closed it."""
        self._guard.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and count."""
        self._beside_body += len(data)
        super().data_received(data)
        if self._beside_body > HEAD_BYTES and not self.transport.is_closing():
            self._refuse("The head of the request is too large.")
        elif self._is_serving:
            self._guard.serves(self)
        else:
            self._guard.waits(self)

    def on_response_complete(self) -> None:
        """Another request may follow, unless it is here already."""
        super().on_response_complete()
        if not self._is_serving and not self.transport.is_closing():
            self._guard.rests(self)

    def pause_writing(self) -> None:
        """The client is slower than the answer."""
        super().pause_writing()
        self._guard.blocks(self)

    def resume_writing(self) -> None:
        """It has read on."""
        super().resume_writing()
        self._guard.flows(self)

    @property
    def _is_serving(self) -> bool:
        cycle = cast(RequestResponseCycle | None, self.cycle)
        return cycle is not None and not cycle.response_complete

    def on_message_begin(self) -> None:
        """Count from here: what came before belonged to other requests."""
        super().on_message_begin()
        self._beside_body = 0

    def on_headers_complete(self) -> None:
        """Check the head as a whole."""
        hosts = 0
        size = len(self.url)
        for name, value in self.headers:
            size += len(name) + len(value) + _LINE_END_BYTES
            hosts += name == b"host"
        if size > HEAD_BYTES:
            raise RefusedHead(f"a head of {size} bytes")
        if hosts != 1 and (hosts or self.parser.get_http_version() != "1.0"):  # pyright: ignore[reportOptionalMemberAccess]
            raise RefusedHead(f"{hosts} Host headers")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Body bytes are limited elsewhere; they allow for as much framing."""
        self._beside_body -= 2 * len(body)
        super().on_body(body)

    def _refuse(self, why: str) -> None:
        self.logger.warning(why)
        self.send_400_response(why)


def server_config(
    app: Any,
    shutdown_s: float,
    guard: ConnectionGuard | None = None,
    trusted_proxies: Sequence[str] = TRUSTED_PROXIES,
    keep_alive_s: int = KEEP_ALIVE_S,
) -> uvicorn.Config:
    """How the gateway listens: no WebSockets, no log of uvicorn's own for each request.

    A client whose request crosses with the end of an idle connection loses it. So connections are
    kept for longer than clients and proxies keep theirs.
    """
    guard = guard or ConnectionGuard(CONNECTIONS, HEAD_TIMEOUT_S)
    return uvicorn.Config(
        app,
        http=cast(Any, partial(Connection, guard=guard)),
        # uvicorn's own default believes every program of this machine.
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=max(1, round(shutdown_s)),
    )
