"""The connection: answers in time or one typed error, and goes on when Redis is back."""

import asyncio
import os
import signal
import time

import pytest

from index.errors import ConfigError
from server.redis.connection import RedisConnection, RedisUnavailable, Refused
from server.redis.embedded import EmbeddedServer
from server.redis.scripts import Script

PATIENCE_S = 60.0

SCRIPT = Script("return ARGV[1]")


@pytest.mark.parametrize("url", ["http://localhost:6379", "localhost:6379", ""])
def test_addresses_that_cannot_be_one_of_redis_are_refused(url: str):
    with pytest.raises(ConfigError, match="redis_url must begin with"):
        RedisConnection(url, 1.0)


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1/0", "unix:///nowhere/redis.sock", "redis://nowhere.invalid/0"]
)
def test_an_unreachable_server_is_one_error_at_once(url: str):
    async def ask() -> None:
        connection = RedisConnection(url, 0.5)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(RedisUnavailable, match="does not answer"):
                await connection.command("PING")
        await connection.close()

    asyncio.run(ask())


def test_a_command_that_redis_refuses_is_another_error(redis_server: EmbeddedServer):
    async def ask() -> None:
        connection = RedisConnection(redis_server.url, 1.0)
        with pytest.raises(Refused, match="NOSUCH"):
            await connection.command("NOSUCH")
        await connection.close()

    asyncio.run(ask())


def test_a_server_that_hangs_is_waited_for_no_longer_than_said(redis_server: EmbeddedServer):
    async def ask() -> None:
        connection = RedisConnection(redis_server.url, 1.0)
        pid = redis_server.pid
        assert pid is not None
        assert await connection.command("PING")
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(RedisUnavailable):
                    await connection.command("PING")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await connection.command("PING")
        await connection.close()

    asyncio.run(ask())


def test_scripts_and_connections_outlive_a_restart(redis_server: EmbeddedServer):
    async def ask() -> None:
        connection = RedisConnection(redis_server.url, 1.0)
        assert await connection.script(SCRIPT, [], ["a"]) == b"a"
        pid = redis_server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + PATIENCE_S
        answer = None
        while answer is None and time.monotonic() < until:
            try:
                answer = await connection.script(SCRIPT, [], ["b"])
            except RedisUnavailable:
                await asyncio.sleep(0.02)
        assert answer == b"b"
        await connection.close()

    asyncio.run(ask())


def test_the_key_module_lists_every_key_that_the_program_uses():
    from server.redis import keys

    made = keys.Keys("shop")
    names = {value for value in vars(made).values() if isinstance(value, str)}
    names |= {made.keywords("v", "q", None), made.keywords("v", "q", "u")}
    documented = keys.__doc__ or ""
    for name in names - {"shop:1:"}:
        assert name.startswith("shop:1:")
        kind = ":".join(name.removeprefix("shop:1:").split(":")[:2])
        assert kind in documented, kind


def test_a_subscription_hears_and_finds_out_when_redis_hangs(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("server.redis.connection.QUIET_S", 0.1)

    async def listen() -> None:
        connection = RedisConnection(redis_server.url, 1.0)
        pid = redis_server.pid
        assert pid is not None
        async with connection.subscribed("news") as subscription:
            for message in (b"one", b""):
                assert await connection.command("PUBLISH", "news", message) == 1
                assert await subscription.next() == message
            # Pings are answered meanwhile, and are no messages.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await subscription.next()
        async with connection.subscribed("news") as subscription:
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(RedisUnavailable, match="does not answer"):
                    await subscription.next()
            finally:
                os.kill(pid, signal.SIGCONT)
        await connection.close()

    asyncio.run(listen())


def test_a_subscription_without_redis_is_one_error_at_once():
    async def listen() -> None:
        connection = RedisConnection("redis://127.0.0.1:1/0", 0.5)
        with pytest.raises(RedisUnavailable, match="does not answer"):
            async with connection.subscribed("news"):
                pytest.fail("there is nobody to hear")
        await connection.close()

    asyncio.run(listen())
