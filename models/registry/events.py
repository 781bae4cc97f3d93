"""What happened to a registry: who, what, when, why. JSON lines, only ever appended to.

    {"time": …, "what": "promote", "generation": …, "who": …, "why": …, "revision": …, …}

A line is one write, synced. A line that a killed writer left unfinished is ended by the next one
and passed over by readers. Changes of aliases stand in the aliases' history too, so an event that
was never written is made up for by the next change.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, cast

import orjson

from models.registry.aliases import Aliases, AliasHistory
from models.registry.durable import sync

Event = dict[str, Any]


class EventLog:
    """The log file. Writers hold the registry's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, what: str, *, who: str, why: str = "", **facts: Any) -> None:
        """Add an event. Raises OSError when the disk will not take it."""
        when = facts.pop("time", None) or time.time()
        self._write({"time": when, "what": what, **facts, "who": who, "why": why})

    def read(self) -> list[Event]:
        """All events, oldest first; what is no event is left out."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        events: list[Event] = []
        for line in lines:
            try:
                event = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(event, dict):
                events.append(cast(Event, event))
        return events

    def tells_of(self, what: str, generation: str) -> bool:
        """Whether there is such an event of a generation."""
        return any(
            event.get("what") == what and event.get("generation") == generation
            for event in self.read()
        )

    def catch_up(self, aliases: AliasHistory) -> None:
        """Add the changes of aliases that the log lacks, as a killed process leaves it."""
        known = max((int(event.get("revision", 0)) for event in self.read()), default=0)
        for state in aliases.history(after=known):
            self.append_change(state)

    def append_change(self, state: Aliases) -> None:
        """Add the event of a change of aliases."""
        canary = state.canary
        self.append(
            state.what,
            who=state.who,
            why=state.why,
            time=state.when,
            revision=state.revision,
            champion=state.champion,
            challenger=state.challenger,
            previous=state.previous,
            **({} if canary is None else {"experiment": canary.experiment, "share": canary.share}),
        )

    def _write(self, event: Event) -> None:
        is_new = not self._path.exists()
        with self._path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            unfinished = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
            file.write((b"\n" if unfinished else b"") + orjson.dumps(event) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(self._path.parent)
