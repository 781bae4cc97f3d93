"""Exposures and events joined: the behaviour that training reads, in the form of a dataset's.

One row for each item that a search showed (an impression, at its place) and one for each click and
order of such an item, in `index.dataset.EVENTS`: `session_id` is the search's request_id; query,
user and position are those of the search. Items may be gone from the catalogue by now.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false
from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa

from index.dataset import EVENTS
from server.experiment.assignment import USER
from server.experiment.records import CLICK, IMPRESSION, ORDER

_USER_PREFIX = f"{USER}:"


class Joined(NamedTuple):
    """`rows`: of `index.dataset.EVENTS`, ordered by time. `unmatched`: clicks and orders that name
    no shown item of a known search. `simulated`: whether any of it is made up."""

    rows: pa.Table
    unmatched: int
    simulated: bool


def join(exposures: pa.Table, events: pa.Table) -> Joined:
    """Rows of `server.events.records.EXPOSURES` and `.EVENTS`; each search and each (search, item,
    kind) counts once, the first one. Impressions that clients sent are not needed: what was shown
    is known."""
    rows: list[dict[str, Any]] = []
    shown: dict[tuple[str, str], dict[str, Any]] = {}
    searches: set[str] = set()
    simulated = False
    for one in exposures.to_pylist():
        if one["request_id"] in searches:
            continue
        searches.add(one["request_id"])
        simulated |= one["simulated"]
        for position, item in enumerate(one["items"], 1):
            row = _row(one, item, position)
            shown.setdefault((one["request_id"], item), row)
            rows.append(row)
    unmatched, seen = 0, set[tuple[str, str, str]]()
    for event in events.to_pylist():
        key = (event["request_id"], event["item_id"], event["kind"])
        if event["kind"] not in (CLICK, ORDER) or key in seen:
            continue
        seen.add(key)
        row = shown.get(key[:2])
        if row is None:
            unmatched += 1
            continue
        simulated |= event["simulated"]
        rows.append(row | {"kind": event["kind"], "time": event["time"]})
    rows.sort(key=lambda row: row["time"])
    return Joined(pa.Table.from_pylist(rows, schema=EVENTS), unmatched, simulated)


def _row(exposure: dict[str, Any], item: str, position: int) -> dict[str, Any]:
    unit = str(exposure["unit"])
    return {
        "session_id": exposure["request_id"],
        "user_id": unit.removeprefix(_USER_PREFIX) if unit.startswith(_USER_PREFIX) else None,
        "query": exposure["query"] or None,
        "item_id": item,
        "kind": IMPRESSION,
        "position": position,
        "time": exposure["time"],
        "split": None,
    }
