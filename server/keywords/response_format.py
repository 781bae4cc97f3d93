"""How strictly a service is asked for JSON: a ladder of response formats, strictest first."""

from __future__ import annotations

from typing import Any

from index.errors import ConfigError
from server.keywords.reply import StrictReply, schema

# The second is for services that know no limits on the length of texts.
RUNGS = ("schema", "schema-without-lengths", "object", "text")


def rung_of(name: str) -> int:
    """The place of a format on the ladder. Raises ConfigError."""
    if name not in RUNGS:
        raise ConfigError(f"response_format is {name!r}, it must be one of {', '.join(RUNGS)}")
    return RUNGS.index(name)


def format_of(kind: type[StrictReply], rung: int) -> dict[str, Any] | None:
    """The request's `response_format` for a reply; None asks for text."""
    if RUNGS[rung] == "text":
        return None
    if RUNGS[rung] == "object":
        return {"type": "json_object"}
    form = schema(kind, lengths=RUNGS[rung] == "schema")
    name = kind.__name__.lower()
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": form}}
