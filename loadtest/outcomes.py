"""What became of a request, in one word.

"whole"                  answered, with all of its parts
"degraded: REASON, …"    a search that says what did not take part
"overloaded", …          the slug of a problem
"lost"                   no answer, or none that can be read
"unanswered"             none until the load ended
"""

from __future__ import annotations

from typing import Any

import orjson

WHOLE, LOST, UNANSWERED = "whole", "lost", "unanswered"
DEGRADED = "degraded: "
EXPLAINED = frozenset({"overloaded", "deadline-exceeded"})
"""Refusals that the service announces for too much load; any other failure is unexplained."""
_NOT_DEGRADED = b'"degraded":[]'


def outcome_of(status: int, body: bytes, kind: str) -> str:
    """The outcome of an answer; status 0: there was none."""
    if 200 <= status < 300:
        if kind != "search" or _NOT_DEGRADED in body:
            return WHOLE
        reasons = _json(body).get("degraded")
        return DEGRADED + ", ".join(reasons) if reasons else LOST
    if not status:
        return LOST
    slug = str(_json(body).get("type", "")).rpartition("/")[2]
    return slug or f"status {status}"


def is_degraded(outcome: str) -> bool:
    """A whole answer of less than all parts."""
    return outcome.startswith(DEGRADED)


def is_answered(outcome: str) -> bool:
    """Whole or degraded."""
    return outcome == WHOLE or is_degraded(outcome)


def is_unexplained(outcome: str) -> bool:
    """Neither an answer nor a refusal that the service announces."""
    return not is_answered(outcome) and outcome not in EXPLAINED


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
