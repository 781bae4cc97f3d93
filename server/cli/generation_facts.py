"""How `onesearch generations` tells of generations, aliases and events: as JSON or in lines."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import orjson
import typer

from models.registry.aliases import Aliases
from models.registry.record import GenerationRecord
from server.cli.announcement import announce


def row_of(record: GenerationRecord, aliases: Aliases) -> dict[str, Any]:
    """A generation with its aliases."""
    return record.to_json() | {"aliases": aliases.of(record.version)}


def alias_facts(state: Aliases) -> dict[str, Any]:
    """A state of the aliases and the change that led to it."""
    return {
        "revision": state.revision,
        "champion": state.champion,
        "challenger": state.challenger,
        "previous": state.previous,
        "canary": None if state.canary is None else asdict(state.canary),
        "what": state.what,
        "who": state.who,
        "why": state.why,
        "when": state.when,
        "damaged": list(state.damaged),
    }


def tell_aliases(state: Aliases, as_json: bool) -> None:
    """Say what a change led to, here and to the servers."""
    announce(state)
    if state.unsynced:
        typer.echo(f"note: it holds, but a power cut may undo it: {state.unsynced}", err=True)
    if as_json:
        tell(alias_facts(state))
        return
    for alias, version in state.named().items():
        typer.echo(f"{alias}: {version}")
    if state.canary is not None:
        typer.echo(f"canary: {state.canary.share:g} of the users, {state.canary.experiment}")


def event_line(event: dict[str, Any]) -> str:
    """An event for a person."""
    named = ", ".join(
        f"{key} {value}"
        for key, value in event.items()
        if key not in ("time", "what", "who", "why") and value is not None
    )
    why = f": {event['why']}" if event.get("why") else ""
    when = moment(float(event.get("time", 0)))
    return f"{when} {event.get('what')} {named} by {event.get('who')}{why}"


def moment(seconds: float) -> str:
    """Unix time for a person, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def tell(facts: dict[str, Any]) -> None:
    """One JSON object."""
    typer.echo(orjson.dumps(facts).decode())
