"""`onesearch keys`: make, list, replace and revoke API keys. docs/security.md

A running server reads the file again within a second or two of a change.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast

import orjson
import typer

from index.errors import ConfigError
from server import settings as settings_of
from server.keys import SCOPES, Key, KeyScope, make_key
from server.keys_file import change_keys, read_keys

DEFAULT_FILE = Path("var/keys.json")
GRACE = "7d"
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}

app = typer.Typer(no_args_is_help=True, help="Make, list, replace and revoke API keys.")
File = Annotated[
    Path | None,
    typer.Option(help=f"Of the keys; the setting keys_file unless given, else {DEFAULT_FILE}."),
]
Config = Annotated[
    Path | None, typer.Option(help="TOML file of settings; ONESEARCH_CONFIG names one too.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is: in the log, and for its rate.")],
    scope: Annotated[
        list[str], typer.Option(help=f"What it allows, once for each: {', '.join(SCOPES)}.")
    ],
    expires: Annotated[
        str | None, typer.Option(help="After 90d, 12h, 30m; it does not end unless given.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests per second; the setting rate_limit unless given.")
    ] = None,
    file: File = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It is shown this once: the file has only its SHA-256."""
    now = time.time()
    ends = None if expires is None else now + _seconds_of(expires, "--expires")
    # Which scopes there are is said by what it becomes.
    text, key = make_key(name, cast(list[KeyScope], scope), now, ends, rate)
    path = _path(file, config)

    def add(known: Sequence[Key]) -> Sequence[Key]:
        return (*known, key)

    change_keys(path, add)
    _tell_new(text, key, path, as_json)


@app.command()
def rotate(
    name: Annotated[str, typer.Argument(help="Whose key is replaced.")],
    grace: Annotated[
        str, typer.Option(help="The old one is valid for so long: 7d, 12h, 0s.")
    ] = GRACE,
    expires: Annotated[
        str | None, typer.Option(help="Of the new one: after 90d, 12h; as create.")
    ] = None,
    file: File = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a key with the scopes and rate of a name's newest one; both are valid for a while."""
    now = time.time()
    until = now + _seconds_of(grace, "--grace")
    ends = None if expires is None else now + _seconds_of(expires, "--expires")
    path, made = _path(file, config), list[tuple[str, Key]]()

    def replace(known: Sequence[Key]) -> Sequence[Key]:
        valid = [key for key in known if key.name == name and not key.ended(now)]
        if not valid:
            raise ConfigError(f"no valid key is called {name!r}; see `onesearch keys list`")
        newest = max(valid, key=lambda key: key.created)
        made[:] = [make_key(name, newest.scopes, now, ends, newest.rate)]
        return (*(_ending(key, until) if key in valid else key for key in known), made[0][1])

    change_keys(path, replace)
    _tell_new(*made[0], path, as_json)


@app.command("list")
def list_keys(file: File = None, config: Config = None, as_json: AsJson = False) -> None:
    """Show the keys: ids, names, scopes, when they end. Not the keys themselves."""
    now = time.time()
    keys = read_keys(_path(file, config))
    if as_json:
        typer.echo(orjson.dumps({"keys": [_facts(key, now) for key in keys]}).decode())
        return
    if not keys:
        typer.echo("no keys: nobody may do anything that needs one")
    for key in keys:
        rate = "" if key.rate is None else f", {key.rate:g}/s"
        scopes = ",".join(sorted(key.scopes))
        typer.echo(f"{key.id}  {key.name:<20} {scopes}{rate}  {_end(key, now)}")


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(help="An id, or a name: then all keys of that name.")],
    file: File = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Remove a key, or a name's keys; they end within a second or two."""
    removed: list[Key] = []

    def without(known: Sequence[Key]) -> Sequence[Key]:
        removed[:] = [key for key in known if which in (key.id, key.name)]
        if not removed:
            raise ConfigError(f"no key has the id or name {which!r}; see `onesearch keys list`")
        return [key for key in known if key not in removed]

    change_keys(_path(file, config), without)
    if as_json:
        typer.echo(orjson.dumps({"revoked": [key.id for key in removed]}).decode())
        return
    for key in removed:
        typer.echo(f"revoked {key.id} ({key.name})")


def _path(file: Path | None, config: Path | None) -> Path:
    return file or settings_of.load(config).keys_file or DEFAULT_FILE


def _ending(key: Key, until: float) -> Key:
    """The key, valid until then at most."""
    expires = until if key.expires is None else min(until, key.expires)
    return Key(key.id, key.name, key.digest, key.scopes, key.created, expires, key.rate)


def _seconds_of(text: str, option: str) -> float:
    found = _SPAN.match(text)
    if found is None:
        raise ConfigError(f"{option} must be like 90d, 12h, 30m or 10s, not {text!r}")
    return float(found[1]) * _SECONDS[found[2]]


def _tell_new(text: str, key: Key, path: Path, as_json: bool) -> None:
    if as_json:
        facts = {"key": text, **_facts(key, key.created), "file": str(path)}
        typer.echo(orjson.dumps(facts).decode())
        return
    typer.echo(text)
    typer.echo(
        f"{key.id} ({key.name}) is in {path}; {_end(key, key.created)}. "
        "The line above is not shown again.",
        err=True,
    )


def _facts(key: Key, now: float) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created": key.created,
        "expires": key.expires,
        "rate": key.rate,
        "valid": not key.ended(now),
    }


def _end(key: Key, now: float) -> str:
    if key.expires is None:
        return "does not end"
    shown = datetime.fromtimestamp(key.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{'expired' if key.ended(now) else 'until'} {shown}"
