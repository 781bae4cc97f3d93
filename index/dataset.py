"""A dataset: one immutable directory of Parquet tables that everything else is built from.

```
items.parquet      the catalogue, one row an item, in source order
judgments.parquet  graded relevance of (query, item)
events.parquet     impressions, clicks, orders
users.parquet      what is known of users
splits.parquet     query → train | validation | test; respellings of a query share a side
rejected.jsonl     source rows that were not taken: table, path, line, field, reason, value
manifest.json      kind "dataset"; source, simulated, queries_derived, summary
```
Invariants of a published dataset (checked by `index.validation`): item ids are unique and not
empty; judgments and events name items that exist; every query of judgments and events is in splits.

Events have a nullable `split` mark. Sources that split by time mark each event; mark and split of
the event's query must agree before an event belongs to a split (`events_of`), so a query that is
held out is trained on at no time, and nothing is trained on after the cut.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index import artifact
from index.errors import ArtifactError, DataError
from index.splits import SPLIT_NAMES, split_queries

KIND = "dataset"
DEFAULT_BATCH_ROWS = 8_192


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_STRINGS = pa.list_(pa.string())

ITEMS = pa.schema(
    [
        _required("item_id", pa.string()),
        _required("title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("brand", pa.string()),
        pa.field("category", _STRINGS),
        pa.field("color", _STRINGS),
        pa.field("material", _STRINGS),
        pa.field("audience", _STRINGS),
        pa.field("function", _STRINGS),
        pa.field("attributes", pa.map_(pa.string(), _STRINGS)),
        pa.field("price", pa.float64()),
        pa.field("stock", pa.int64()),
        pa.field("popularity", pa.float64()),
    ]
)
JUDGMENTS = pa.schema(
    [
        _required("query", pa.string()),
        _required("item_id", pa.string()),
        _required("grade", pa.float64()),
    ]
)
EVENTS = pa.schema(
    [
        _required("session_id", pa.string()),
        pa.field("user_id", pa.string()),
        pa.field("query", pa.string()),
        _required("item_id", pa.string()),
        _required("kind", pa.string()),
        pa.field("position", pa.int32()),
        _required("time", pa.float64()),
        pa.field("split", pa.string()),
    ]
)
USERS = pa.schema(
    [_required("user_id", pa.string()), pa.field("attributes", pa.map_(pa.string(), pa.string()))]
)
SPLITS = pa.schema([_required("query", pa.string()), _required("split", pa.string())])

TABLES: dict[str, pa.Schema] = {
    "items": ITEMS,
    "judgments": JUDGMENTS,
    "events": EVENTS,
    "users": USERS,
    "splits": SPLITS,
}
EVENT_KINDS = ("impression", "click", "order")
REJECTED = "rejected.jsonl"


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A published dataset. Tables are read when first asked for and kept."""

    path: Path
    version: str
    manifest: dict[str, Any]
    _tables: dict[str, pa.Table] = field(default_factory=dict[str, pa.Table])

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Dataset:
        """Open a dataset directory. Raises ArtifactError when it is missing or damaged."""
        path = Path(path)
        manifest = artifact.read(path, KIND, verify=verify)
        for name in TABLES:
            if f"{name}.parquet" not in manifest.files:
                raise ArtifactError(f"{path} lists no {name}.parquet; import it again")
        return cls(path, manifest.version, manifest.extra)

    @property
    def items(self) -> pa.Table:
        return self.table("items")

    @property
    def judgments(self) -> pa.Table:
        return self.table("judgments")

    @property
    def events(self) -> pa.Table:
        return self.table("events")

    @property
    def users(self) -> pa.Table:
        return self.table("users")

    @property
    def splits(self) -> pa.Table:
        return self.table("splits")

    @property
    def simulated(self) -> bool:
        return bool(self.manifest.get("simulated", False))

    @property
    def queries_derived(self) -> bool:
        return bool(self.manifest.get("queries_derived", False))

    def table(self, name: str) -> pa.Table:
        """A whole table by name (one of TABLES). Raises ArtifactError when its schema differs."""
        table = self._tables.get(name)
        if table is None:
            path = self._file(name)
            try:
                table = pq.read_table(path, memory_map=True)
            except (pa.ArrowException, OSError) as error:
                raise ArtifactError(f"{path} cannot be read: {error}") from None
            self._check_schema(path, table.schema, TABLES[name])
            self._tables[name] = table
        return table

    def batches(
        self, name: str, batch_rows: int = DEFAULT_BATCH_ROWS, columns: list[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Stream a table in bounded memory."""
        with pq.ParquetFile(self._file(name)) as file:
            self._check_schema(self._file(name), file.schema_arrow, TABLES[name])
            yield from file.iter_batches(batch_rows, columns=columns)

    def split_of(self) -> dict[str, str]:
        """query → "train" | "validation" | "test"."""
        splits = self.splits
        queries = splits.column("query").to_pylist()
        return dict(zip(queries, splits.column("split").to_pylist(), strict=True))

    def queries(self, split: str) -> list[str]:
        """Queries of one split, in the order of the splits table. Raises DataError if unknown."""
        _check_split(split)
        splits = self.splits
        return splits.filter(pc.equal(splits.column("split"), split)).column("query").to_pylist()

    def judgments_of(self, split: str) -> pa.Table:
        """Judgments whose query is in `split`."""
        queries = pa.array(self.queries(split), pa.string())
        return self.judgments.filter(pc.is_in(self.judgments.column("query"), queries))

    def events_of(self, split: str) -> pa.Table:
        """Events of one split: both the event's mark and its query's split must say so.

        What is missing says nothing: an event without a mark goes by its query, one without a query
        (browsing) by its mark, one without either is training material, because it can leak nothing
        into a query's evaluation.
        """
        events = self.events
        of_query = self._queried(split)
        mark = events.column("split")
        of_mark = pc.equal(mark, split)
        bare = pc.and_(pc.is_null(mark), pc.is_null(events.column("query")))
        keep = pc.and_(
            pc.or_(pc.is_null(mark), pc.fill_null(of_mark, False)),
            pc.or_(pc.is_null(events.column("query")), of_query),
        )
        if split != "train":
            keep = pc.and_(keep, pc.invert(bare))
        return events.filter(keep)

    def events_before_cut(self) -> pa.Table:
        """Events that training may know as somebody's past: marked train, whatever their query (it
        happened before anything held out), or without a mark and of a training query or none."""
        mark, query = self.events.column("split"), self.events.column("query")
        unmarked = pc.or_(pc.is_null(query), self._queried("train"))
        return self.events.filter(pc.if_else(pc.is_null(mark), unmarked, pc.equal(mark, "train")))

    def _queried(self, split: str) -> pa.ChunkedArray:
        """Which events have a query of `split`."""
        queries = pa.array(self.queries(split), pa.string())
        return pc.is_in(self.events.column("query"), queries)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.parquet"

    @staticmethod
    def _check_schema(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
        if found.names != expected.names or found.types != expected.types:
            raise ArtifactError(f"{path} has columns {found.names}, expected {expected.names}")


class TableWriter:
    """Rows → one Parquet file, in batches, so memory does not grow with the rows.

    Use as a context manager. The bytes depend on the rows only.
    """

    def __init__(self, directory: Path, name: str, *, batch_rows: int = DEFAULT_BATCH_ROWS) -> None:
        self._schema = TABLES[name]
        self._path = directory / f"{name}.parquet"
        self._writer = pq.ParquetWriter(
            self._path, self._schema, compression="zstd", write_statistics=False
        )
        self._batch_rows = batch_rows
        self._rows: list[Mapping[str, Any]] = []
        self.count = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row: a value for each column; missing ones are null."""
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= self._batch_rows:
            self._flush()

    def close(self) -> None:
        if self._writer.is_open:
            if self._rows:
                self._flush()
            self._writer.close()

    def _flush(self) -> None:
        try:
            batch = pa.RecordBatch.from_pylist(list(self._rows), schema=self._schema)
            batch.validate()
            _check_required(batch, self._schema)
        except (pa.ArrowException, TypeError) as error:
            raise DataError(f"rows do not fit the table: {error}", path=self._path.name) from None
        self._rows.clear()
        self._writer.write_batch(batch)


def write_dataset(
    path: Path | str,
    *,
    items: Iterable[Mapping[str, Any]],
    judgments: Iterable[Mapping[str, Any]] = (),
    events: Iterable[Mapping[str, Any]] = (),
    users: Iterable[Mapping[str, Any]] = (),
    splits: Mapping[str, str] | None = None,
    source: str = "rows",
    simulated: bool = False,
    queries_derived: bool = False,
    overwrite: bool = False,
    **manifest: Any,
) -> Dataset:
    """Publish rows that are clean already (importers clean foreign ones) as a dataset.

    Without `splits` every query is assigned by `split_queries`. Item references are not checked.
    """
    with artifact.create(Path(path), KIND, overwrite=overwrite) as draft:
        queries: dict[str, None] = {}
        for name, rows in (
            ("items", items),
            ("judgments", judgments),
            ("events", events),
            ("users", users),
        ):
            with TableWriter(draft.path, name) as writer:
                for row in rows:
                    writer.write(row)
                    query = row.get("query")
                    if query is not None:
                        queries[query] = None
        write_splits(draft.path, split_queries(queries) if splits is None else splits)
        (draft.path / REJECTED).write_bytes(b"")
        draft.manifest.update(
            source=source, simulated=simulated, queries_derived=queries_derived, **manifest
        )
    return Dataset.open(path)


def write_splits(directory: Path, splits: Mapping[str, str]) -> None:
    """Write splits.parquet, ordered by query."""
    with TableWriter(directory, "splits") as writer:
        for query in sorted(splits):
            _check_split(splits[query])
            writer.write({"query": query, "split": splits[query]})


def _check_required(batch: pa.RecordBatch, schema: pa.Schema) -> None:
    for column, kind in zip(batch.columns, schema, strict=True):
        if not kind.nullable and column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError("has no value", path="batch", row=row + 1, field=kind.name)


def _check_split(split: str) -> None:
    if split not in SPLIT_NAMES:
        raise DataError(f"unknown split {split!r}; splits are {', '.join(SPLIT_NAMES)}")
