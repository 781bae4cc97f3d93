"""Ids of the requests of a round: its number, how many there are, and each one's place."""

from __future__ import annotations

_MARK = "sid-round"


def request_names(number: int, size: int) -> list[str]:
    """One per request."""
    return [f"{_MARK}/{number}/{size}/{place}" for place in range(size)]


def round_of(request_id: str) -> tuple[str, int]:
    """The round's number as text and its size; "", 0 for requests of no round."""
    parts = request_id.split("/")
    if len(parts) != 4 or parts[0] != _MARK:
        return "", 0
    return parts[1], int(parts[2])
