"""Opening Redis as the settings say: the one that is named, or the embedded one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer
from server.settings import Settings


def embedded_server(settings: Settings) -> EmbeddedServer | None:
    """The server to start, or None where one is named."""
    return None if settings.redis_url else EmbeddedServer(settings.redis_directory)


@asynccontextmanager
async def open_redis(settings: Settings) -> AsyncGenerator[RedisConnection, None]:
    """A connection; the embedded server, if that is meant, runs as long.

    Raises ConfigError for a wrong address or where there is no server program. A named server that
    does not answer is found out by the first command.
    """
    server = embedded_server(settings)
    if server is not None:
        await asyncio.to_thread(server.start)
    try:
        url = server.url if server is not None else settings.redis_address
        assert url is not None
        connection = RedisConnection(url, settings.redis_timeout_s)
        try:
            yield connection
        finally:
            await connection.close()
    finally:
        if server is not None:
            await asyncio.to_thread(server.stop)
