"""A round's dataset: the base dataset, the behaviour of accepted rounds, and that of this batch.

Items are those of the champion's snapshot, in its order. A query keeps its side: what was held out
is held out for ever. A new query joins the side of its respellings, else it is drawn by its hash as
in `index.splits`. Where a new query joins respellings of both sides, the training side gives way:
its queries are held out from now on, and not measured, because they were trained on before.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index import artifact
from index.dataset import EVENTS, ITEMS, JUDGMENTS, KIND, REJECTED, SPLITS, TABLES, Dataset
from index.errors import ArtifactError
from index.snapshot import Snapshot
from index.splits import SPLIT_NAMES, cluster_queries, split_queries
from index.text import normalise

SOURCE = "sidecar"


class Sides(NamedTuple):
    """query → train, validation or test; and queries that left the training side just now."""

    of: dict[str, str]
    moved: frozenset[str]


def sides_of(known: Mapping[str, str], queries: Iterable[str]) -> Sides:
    """The sides of known queries and new ones."""
    of, moved = dict(known), set[str]()
    for cluster in cluster_queries([*known, *queries]):
        there = {known[query] for query in cluster if query in known}
        held = there - {SPLIT_NAMES[0]}
        if there:
            side = max(held) if held else SPLIT_NAMES[0]
        else:
            representative = min(map(normalise, cluster))
            side = split_queries([representative])[representative]
        for query in cluster:
            before = known.get(query)
            if before is None:
                of[query] = side
            elif held and before == SPLIT_NAMES[0]:
                of[query] = side
                moved.add(query)
    return Sides(of, frozenset(moved))


def extend(
    path: Path,
    base: Dataset,
    snapshot: Snapshot,
    behaviour: Sequence[pa.Table],
    known: Mapping[str, str],
    moved: frozenset[str],
    *,
    simulated: bool,
) -> Dataset:
    """Write the dataset; replaces one that is there. `behaviour`: rows of EVENTS; `known`: sides of
    the base's queries and of those that came since; `moved`: those that left the training side.

    Raises ArtifactError when the snapshot is not the base's.
    """
    check_base(base, snapshot)
    items = _items(snapshot)
    ids = items.column("item_id")
    events = pa.concat_tables([base.events, *behaviour])
    tables = {
        "items": items,
        "judgments": _known(base.judgments, ids).cast(JUDGMENTS),
        "events": _known(events, ids).cast(EVENTS),
        "users": base.users,
    }
    queries = [query for query in pc.unique(events.column("query")).to_pylist() if query]
    sides = sides_of(known, queries)
    ordered = sorted(sides.of)
    tables["splits"] = pa.table([ordered, [sides.of[query] for query in ordered]], schema=SPLITS)
    shutil.rmtree(path, ignore_errors=True)
    with artifact.create(path, KIND) as draft:
        for name in TABLES:
            target = draft.path / f"{name}.parquet"
            pq.write_table(tables[name], target, compression="zstd", write_statistics=False)
        (draft.path / REJECTED).write_bytes(b"")
        draft.manifest.update(base.manifest)
        draft.manifest.update(
            source=SOURCE,
            simulated=base.simulated or simulated,
            extends=[base.version, *base.manifest.get("extends", ())],
            moved=sorted(moved | sides.moved),
        )
        draft.manifest.pop("summary", None)
    return Dataset.open(path)


def check_base(base: Dataset, snapshot: Snapshot) -> None:
    """Raises ArtifactError unless the snapshot was built from the dataset."""
    parents = snapshot.manifest.get("parents", [])
    if base.version not in parents:
        raise ArtifactError(
            f"the champion's snapshot {snapshot.version} was not built from {base.path} (version "
            f"{base.version}) but from {', '.join(parents) or 'none that it names'}; name that one"
        )


def _items(snapshot: Snapshot) -> pa.Table:
    """The snapshot's items as a dataset's; columns that it lacks are empty."""
    table = snapshot.items.table
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in ITEMS
    ]
    return pa.table(columns, schema=ITEMS)


def _known(rows: pa.Table, ids: pa.ChunkedArray) -> pa.Table:
    """Rows about items that there are."""
    return rows.filter(pc.is_in(rows.column("item_id"), ids.combine_chunks()))
