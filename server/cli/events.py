"""`onesearch events`: export what users were shown and did, see how much is kept, forget a user."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import orjson
import typer

from index.errors import ConfigError
from server import settings as settings_of

if TYPE_CHECKING:
    from server.events.records import Entry
    from server.redis.connection import RedisConnection
    from server.redis.keys import Keys

EVERY_S = 60.0
_AGO = re.compile(r"(\d+(?:\.\d+)?)([mhd])\Z")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
Result = TypeVar("Result")

app = typer.Typer(no_args_is_help=True, help="Export and mind what users were shown and did.")
Config = Annotated[
    Path | None, typer.Option(help="TOML file of settings; ONESEARCH_CONFIG names one too.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(help="Gets events/ and exposures/ of Parquet.")],
    since: Annotated[
        str | None,
        typer.Option(
            help="Nothing received before: 2026-11-23, 2026-11-23T08:00, or 30m, 12h, 7d."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until Ctrl-C, also while Redis is away.")
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.1, help="With --follow: seconds from one look to the next.")
    ] = EVERY_S,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Write what is new as Parquet segments, each entry once. A killed export goes on where it
    stopped."""
    from server.events.export import exporting

    start = _entry_of(since)

    async def work(redis: RedisConnection, keys: Keys) -> None:
        if not follow:
            _tell(await _drain(redis, keys, directory, start), directory, as_json)
            return
        await _follow(redis, keys, directory, start, every, as_json)

    with exporting(directory):
        _run(config, work)


@app.command()
def status(config: Config = None, as_json: AsJson = False) -> None:
    """How many events and exposures Redis keeps, and since when."""

    async def work(redis: RedisConnection, keys: Keys) -> dict[str, Any]:
        from server.events.records import Entry, Log

        told: dict[str, Any] = {}
        for log in Log:
            key = log.key(keys)
            ends = [
                await redis.command(command, key, *bounds, "COUNT", 1)
                for command, bounds in (("XRANGE", ("-", "+")), ("XREVRANGE", ("+", "-")))
            ]
            first, last = (
                Entry.of(end[0][0].decode()).milliseconds / 1000 if end else None for end in ends
            )
            told[log.value] = {
                "entries": await redis.command("XLEN", key),
                "bytes": await redis.command("MEMORY", "USAGE", key) or 0,
                "first": first,
                "last": last,
            }
        return told

    told = _run(config, work)
    if as_json:
        typer.echo(orjson.dumps(told).decode())
        return
    for name, facts in told.items():
        kept = f"{name}: {facts['entries']:,} entries, {facts['bytes'] / 1e6:.1f} MB"
        if facts["first"] is not None:
            kept += f", from {_shown(facts['first'])} to {_shown(facts['last'])}"
        typer.echo(kept)


@app.command()
def forget(
    user_id: Annotated[str, typer.Argument(help="As searches and events name the user.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Delete from Redis what a user did and was shown. Exported files are yours to clean."""
    if not user_id.strip():
        raise ConfigError("USER_ID is empty; name the user as searches and events do")

    async def work(redis: RedisConnection, keys: Keys) -> dict[str, int]:
        from server.events.log import forget as forget_user

        found = await forget_user(redis, keys, user_id)
        return {log.value: count for log, count in found.items()}

    deleted = _run(config, work)
    if as_json:
        typer.echo(orjson.dumps(deleted).decode())
    else:
        typer.echo(", ".join(f"{count:,} {name} deleted" for name, count in deleted.items()))


async def _drain(
    redis: RedisConnection, keys: Keys, directory: Path, since: Entry
) -> dict[str, Any]:
    from server.events.export import export as export_log
    from server.events.records import Log

    told: dict[str, Any] = {}
    for log in Log:
        done = await export_log(redis, keys, directory, log, since)
        told[log.value] = {
            "rows": done.rows,
            "files": [str(path) for path in done.files],
            "gap_after": None if done.gap is None else str(done.gap),
        }
    return told


async def _follow(
    redis: RedisConnection,
    keys: Keys,
    directory: Path,
    since: Entry,
    every_s: float,
    as_json: bool,
) -> None:
    from server.redis.connection import RedisUnavailable

    while True:
        try:
            told = await _drain(redis, keys, directory, since)
        except RedisUnavailable as error:
            typer.echo(f"{error}; trying again", err=True)
        else:
            if any(facts["files"] for facts in told.values()):
                _tell(told, directory, as_json)
        await asyncio.sleep(every_s)


def _tell(told: dict[str, Any], directory: Path, as_json: bool) -> None:
    for name, facts in told.items():
        if facts["gap_after"]:
            typer.echo(
                f"warning: {name} after {facts['gap_after']} may be missing: Redis does not keep "
                "that entry any more; export more often",
                err=True,
            )
    if as_json:
        typer.echo(orjson.dumps(told).decode())
        return
    rows = ", ".join(f"{facts['rows']:,} {name}" for name, facts in told.items())
    typer.echo(f"{rows} written to {directory}")


def _run(config: Path | None, work: Callable[[RedisConnection, Keys], Awaitable[Result]]) -> Result:
    from server.redis.keys import Keys
    from server.redis.opening import open_redis

    settings = settings_of.load(config)

    async def go() -> Result:
        async with open_redis(settings) as redis:
            return await work(redis, Keys(settings.redis_prefix))

    return asyncio.run(go())


def _entry_of(since: str | None) -> Entry:
    """The first entry of a time. Raises ConfigError."""
    from server.events.records import START, Entry

    if since is None:
        return START
    ago = _AGO.match(since)
    try:
        if ago is not None:
            time = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        else:
            time = datetime.fromisoformat(since)
            time = time if time.tzinfo is not None else time.astimezone()
        # The entry before: reading goes on after it.
        return Entry(max(0, int(time.timestamp() * 1000) - 1), 2**63)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"--since {since!r} is no time; give 2026-11-23, 2026-11-23T08:00, or 30m, 12h, 7d"
        ) from None


def _shown(time: float) -> str:
    return datetime.fromtimestamp(time).astimezone().isoformat(timespec="seconds")
