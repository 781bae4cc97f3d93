"""Replaying a change log: from a snapshot to the view that its changes lead to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from index.errors import ArtifactError
from index.live.changes import Record
from index.live.delta import Delta
from index.live.log import read_log
from index.live.plan import plan
from index.live.prepare import prepared
from index.live.view import CatalogueView

PIECE_CHANGES = 4_096
"""Records are taken together up to this many changes: fewer, larger steps."""


def replay(
    view: CatalogueView,
    log: Path,
    *,
    through: int | None = None,
    unfinished: bool = False,
    heard: Callable[[Delta], None] | None = None,
) -> CatalogueView:
    """The view after the log's changes behind its own, up to `through`. With `unfinished` the last
    record may be one that its writer has not finished: it is left out. `heard` is called with each
    step.

    Raises ArtifactError when the log is damaged or does not fit the view.
    """
    levels, dimension = view.layout.levels, view.dense.dimension
    pending: list[Record] = []
    count = 0
    for entry in read_log(log, view.sequence, unfinished=unfinished):
        if through is not None and entry.last > through:
            break
        record = Record.from_bytes(entry.payload, levels, dimension)
        if entry.last - entry.first + 1 != len(record.changes):
            raise ArtifactError(f"record {entry.first} of {log} holds another number of changes")
        if entry.first <= view.sequence:
            raise ArtifactError(f"record {entry.first} of {log} overlaps change {view.sequence}")
        pending.append(record)
        count += len(record.changes)
        if count >= PIECE_CHANGES:
            view, pending, count = replayed(view, pending, log, heard), [], 0
    return replayed(view, pending, log, heard)


def replayed(
    view: CatalogueView,
    records: Sequence[Record],
    log: Path,
    heard: Callable[[Delta], None] | None = None,
) -> CatalogueView:
    """The view after some records of a log."""
    if not records:
        return view
    whole = Record(
        [change for record in records for change in record.changes],
        np.concatenate([record.codes for record in records]),
        np.concatenate([record.embeddings for record in records]),
    )
    made = plan(view.items, whole.changes)
    if made.rejected:
        first = made.rejected[0]
        raise ArtifactError(
            f"change {view.sequence + 1 + first.index} of {log} ({first.item_id!r}: "
            f"{first.reason}) does not fit the snapshot; they do not belong together"
        )
    delta = prepared(view, made, whole)
    view = view.with_delta(delta)
    if heard is not None:
        heard(delta)
    return view
