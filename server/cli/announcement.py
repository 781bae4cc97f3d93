"""What a command that changed the aliases does so that servers look at once."""

from __future__ import annotations

import asyncio

import typer

from index.errors import OnesearchError
from models.registry.aliases import Aliases
from server import settings as settings_of


def announce(state: Aliases) -> None:
    """Announce it in the Redis that the settings name, if they do. The change is made already, so
    what fails here is a note: servers find it in the registry's directory."""
    try:
        settings = settings_of.load()
        if settings.redis_url is None:
            return
        # Only who has a Redis waits for its client to be imported.
        from server.redis.announcements import announce_once

        asyncio.run(announce_once(settings, state))
    except OnesearchError as error:
        typer.echo(f"note: not announced, servers look by themselves: {error}", err=True)
