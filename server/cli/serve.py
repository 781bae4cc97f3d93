"""`onesearch serve`: bind, load a generation, answer until told to end.

SIGTERM drains: /readyz says 503 while requests are still answered for `drain_s`, then the socket
closes, open requests end, and the status is 0. Ctrl-C skips the wait.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
import uvicorn

from index.errors import ConfigError
from models.registry.registry import DEFAULT_REGISTRY
from server import settings as settings_of
from server.settings import DEFAULT_CHAMPION, Settings

if TYPE_CHECKING:
    from server.assembly import Served
    from server.gateway import Gateway

SWITCH_INTERVAL_S = 0.0005
"""How long a thread that computes in Python may keep the event loop waiting. Python's own 5 ms are
as long as a search takes, and a search changes threads four times."""


def serve(
    snapshot: Annotated[Path | None, typer.Option(help="Snapshot directory.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint directory.")] = None,
    engine: Annotated[str | None, typer.Option(help="native (default) or vllm.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port, 8080 unless given; 0 takes a free one.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on, 127.0.0.1 unless given.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; ONESEARCH_CONFIG names one too.")
    ] = None,
) -> None:
    """Answer searches over HTTP: the page at /, the API at /docs."""
    run_server(
        settings_of.load(
            config,
            snapshot=snapshot,
            checkpoint=checkpoint,
            engine=engine,
            port=port,
            host=host,
        )
    )


serve.__doc__ = (
    f"{serve.__doc__} Without both paths it serves and follows the champion of the registry in "
    f"{DEFAULT_REGISTRY}, or what {DEFAULT_CHAMPION} names."
)


def run_server(settings: Settings) -> None:
    """Serve until a signal. Raises ConfigError or ArtifactError before the first request."""
    if settings.engine == "vllm" and find_spec("vllm") is None:
        raise ConfigError(
            "--engine vllm: vLLM is not installed in this environment; make one that has it with "
            "`make vllm-env` and start .venv-vllm/bin/onesearch (docs/vllm.md)"
        )
    if settings.redis_url is not None:
        from server.redis.connection import check_url

        check_url(settings.redis_address or "")
    if settings.keys_file is not None:
        from server.keys_file import read_keys

        read_keys(settings.keys_file)
    # What needs torch is imported here: wrong settings are told without waiting for it.
    from server.assembly import chosen

    served = chosen(settings)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with (
        bind_all(settings) as (listeners, bound),
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        runner.run(_serve(bound, served, listeners))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop where it is installed (it has no Windows build), else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextmanager
def bind_all(settings: Settings) -> Generator[tuple[list[socket.socket], Settings], None, None]:
    """The listener, that of /admin where there is one, and the settings with the port it has."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(bind(settings.host, settings.port))]
        if settings.admin_port is not None:
            listeners.append(stack.enter_context(bind(settings.admin_host, settings.admin_port)))
            port = listeners[1].getsockname()[1]
            settings = settings.model_copy(update={"admin_port": port})
        yield listeners, settings


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises ConfigError that says what to change."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise ConfigError(f"host {host!r} is no address of this machine; try 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        # Listening already now makes a second server on this port fail here and not later.
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(_why_not_bound(error, host, port)) from None
    return listener


def _why_not_bound(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is already in use; choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; choose one from 1024 up"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host!r} is no address of this machine; try 127.0.0.1"
    return f"cannot listen on {host} port {port}: {error.strerror}"


async def _serve(settings: Settings, served: Served, listeners: list[socket.socket]) -> None:
    from server.assembly import assemble
    from server.connection_guard import allow_files
    from server.connections import server_config
    from server.logs import forward_standard_logging
    from server.security import warn_if_open

    started = time.monotonic()
    app = await assemble(settings, served)
    gateway: Gateway = app.state.gateway
    log = gateway.log
    forward_standard_logging(log)
    allow_files(settings.connections)
    serving = asdict(gateway.serving())
    url, *admin_urls = (_url_of(listener) for listener in listeners)
    log.info(
        "serving",
        url=url,
        engine=settings.engine,
        load_s=round(time.monotonic() - started, 2),
        **({"admin_url": admin_urls[0]} if admin_urls else {}),
        **serving,
    )
    warn_if_open(settings, log)
    if sys.stderr.isatty():
        typer.echo(f"onesearch answers at {url}", err=True)
    # A full collection would look at all that was imported and loaded, and stop every request for
    # a quarter of a second. What is there now stays; only what requests make is looked at.
    gc.collect()
    gc.freeze()
    server = DrainingServer(
        server_config(
            app,
            settings.shutdown_s,
            app.state.connection_guard,
            settings.trusted_proxies,
            settings.keep_alive_s,
        ),
        gateway,
        settings.drain_s,
    )
    await server.serve(sockets=listeners)


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class DrainingServer(uvicorn.Server):
    """A server that says that it is going before it goes."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, drain_s: float) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._drain_s = drain_s
        self._close_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First SIGTERM: drain. Ctrl-C, or a second signal: close now."""
        self._gateway.draining = True
        if sig == signal.SIGTERM and self._close_at is None:
            self._close_at = time.monotonic() + self._drain_s
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is the drain over?"""
        if self._close_at is not None and time.monotonic() >= self._close_at:
            self.should_exit = True
        return await super().on_tick(counter)
