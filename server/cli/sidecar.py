"""`onesearch sidecar`: trains on what users do, and publishes what passes the gate."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from index.errors import ConfigError
from server import settings as settings_of
from server.cli.worker import end_with_signals

if TYPE_CHECKING:
    from server.sidecar.metrics import SidecarMetrics
    from server.sidecar.rounds import Round
    from server.sidecar.settings import SidecarSettings

EXIT_REFUSED = 3
NO_ROUND = "nothing to do"

app = typer.Typer(
    no_args_is_help=True, help="Train on what users do, and publish what passes the gate."
)
State = Annotated[Path | None, typer.Option(help="Folder of the rounds; var/sidecar.")]
OwnSettings = Annotated[
    Path | None, typer.Option("--settings", help="TOML file of the sidecar's settings.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command()
def run(
    dataset: Annotated[
        Path | None, typer.Option(help="Dataset that the champion's snapshot was built from.")
    ] = None,
    registry: Annotated[Path | None, typer.Option(help="Registry folder.")] = None,
    state: State = None,
    behaviour: Annotated[
        Path | None, typer.Option(help="Folder of `onesearch events export`, read before Redis.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="One round at most, then end: for cron.")
    ] = False,
    publish_as: Annotated[
        str | None, typer.Option(help="champion, canary, challenger or nothing.")
    ] = None,
    min_clicks: Annotated[
        int | None, typer.Option(min=1, help="Clicks that make a round worthwhile.")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.05, help="Of fine-tuning in a round.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve metrics on 127.0.0.1; 0: any port.")
    ] = None,
    metrics_file: Annotated[
        Path | None, typer.Option(help="Write metrics to this file after each step.")
    ] = None,
    own: OwnSettings = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of the gateway's settings; ONESEARCH_CONFIG names one too."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Round after round until Ctrl-C; with --once, status 3 when the round was not published."""
    from dataclasses import replace

    from server.logs import make_logger
    from server.sidecar import settings as sidecar_settings
    from server.sidecar.metrics import SidecarMetrics

    given: dict[str, Any] = {
        "dataset": dataset,
        "state": state,
        "behaviour": behaviour,
        "publish_as": publish_as,
        "min_clicks": min_clicks,
    }
    settings = sidecar_settings.load(own, **given)
    if max_minutes is not None:
        given["sft"] = replace(settings.sft, max_minutes=max_minutes)
        settings = sidecar_settings.load(own, **given)
    gateway = settings_of.load(config, registry=registry)
    metrics = SidecarMetrics(metrics_file)
    log = make_logger(gateway.log_level)

    async def work() -> Round | None:
        from models.registry.registry import Registry
        from server.redis.opening import open_redis
        from server.sidecar.sidecar import Sidecar, Stopped

        async with open_redis(gateway) as redis:
            one = Sidecar(Registry(gateway.registry), redis, settings, gateway, log, metrics)
            end_with_signals(one.stop)
            if not once:
                await one.run()
                return None
            try:
                return await one.once()
            except Stopped:
                return None

    with _exposed(metrics, gateway.metrics_host, metrics_port):
        done = asyncio.run(work())
    if once:
        _tell(done, as_json)
        if done is not None and done.outcome != "published":
            raise typer.Exit(EXIT_REFUSED)


@app.command()
def status(state: State = None, own: OwnSettings = None, as_json: AsJson = False) -> None:
    """The rounds so far, oldest first: what became of each, and why."""
    rounds = _rounds(own, state).all()
    if as_json:
        typer.echo(orjson.dumps({"rounds": [one.to_json() for one in rounds]}).decode())
        return
    if not rounds:
        typer.echo("there has been no round yet")
    for one in rounds:
        when = datetime.fromtimestamp(one.updated).astimezone().isoformat(timespec="seconds")
        at = f" at {one.step}" if one.outcome == "open" else ""
        gain = one.facts.get("gain")
        more = f", {gain['metric']} {gain['mean']:+.3f}" if gain else ""
        typer.echo(f"{one.number} {when} {one.outcome}{at} {one.generation}{more}")
        for line in (*one.reasons, *one.notes):
            typer.echo(f"    {line}")


@app.command()
def replay(
    number: Annotated[int, typer.Argument(help="Of a refused or failed round.")],
    state: State = None,
    own: OwnSettings = None,
) -> None:
    """Have a refused batch tried once more, through the same gate, with the next round."""
    _rounds(own, state).want_again(number)
    typer.echo(f"the batch of round {number} is tried again with the next round")


def _rounds(own: Path | None, state: Path | None) -> Any:
    from server.sidecar import settings as sidecar_settings
    from server.sidecar.rounds import Rounds

    settings: SidecarSettings = sidecar_settings.load(own, state=state)
    return Rounds(settings.state)


def _tell(done: Round | None, as_json: bool) -> None:
    if as_json:
        told = {"outcome": NO_ROUND} if done is None else done.to_json()
        typer.echo(orjson.dumps(told).decode())
        return
    if done is None:
        typer.echo(NO_ROUND)
        return
    typer.echo(f"round {done.number}: {done.outcome} {done.generation}")
    for reason in done.reasons:
        typer.echo(f"    {reason}")


@contextmanager
def _exposed(metrics: SidecarMetrics, host: str, port: int | None) -> Generator[None, None, None]:
    """Serve metrics for a block."""
    if port is None:
        yield
        return
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise ConfigError(f"--metrics-port {port}: {error.strerror}; choose another") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
