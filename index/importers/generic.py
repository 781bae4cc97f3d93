"""Any catalogue as JSON lines, CSV or Parquet, with a column mapping.

SOURCE is a file of items, or a folder with items.*, and where there are any users.*, judgments.*,
events.* (`.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.parquet`; the text formats also `.gz`). All tables
are of one format; what else in the folder looks like data is left out, and a note says so.
"""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import Any

from index.errors import ConfigError
from index.importers.intake import Intake
from index.importers.mapping import FIELDS, REQUIRED, Mapping, TableMapping
from index.importers.records import SUFFIXES, BadRow, SourceRow, read_columns, read_rows

PROBED_ROWS = 1_000
_LISTED = 20


def import_generic(kind: str, source: Path, intake: Intake, mapping: Mapping) -> None:
    """Hand every row of the source to the intake. `kind` is "jsonl", "csv" or "parquet".

    Raises ConfigError for a missing file or column, DataError for a file that cannot be read.
    """
    files = _table_files(kind, source)
    left_out = _left_out(source, set(files.values()))
    if left_out:
        intake.note(
            f"files left out: {_listed(left_out)}; from a folder, {kind} reads "
            f"{', '.join(FIELDS)} ({', '.join(SUFFIXES[kind])})"
        )
    for table, path in files.items():
        import_table(table, path, kind, intake, mapping.table(table), mapping.delimiter)


def import_table(
    table: str,
    path: Path,
    kind: str,
    intake: Intake,
    mapping: TableMapping,
    delimiter: str | None = None,
) -> None:
    """Hand every row of one file to the intake, under canonical field names."""
    rows = read_rows(path, kind, delimiter=delimiter, columns=_used(table, mapping))
    declared = read_columns(path, kind, delimiter=delimiter)
    if declared is None:
        first = list(islice(rows, PROBED_ROWS))
        rows = chain(first, rows)
        available = _columns_of(first)
        complete = False
    else:
        available = declared
        complete = True
    if available:
        _check_columns(table, path, mapping, available, complete=complete)
    ignored = _ignored(table, mapping, available)
    if ignored:
        intake.note(f"{path.name}: columns not used: {', '.join(ignored)}")
    for row in rows:
        if isinstance(row, BadRow):
            intake.reject(table, row)
        else:
            intake.take(table, row.place, _canonical(table, row.values, mapping), mapping)


def _canonical(table: str, values: dict[str, Any], mapping: TableMapping) -> dict[str, Any]:
    row = {field: values.get(mapping.column(field)) for field in FIELDS[table]}
    if mapping.attributes:
        named = {name: values.get(column) for name, column in mapping.attributes.items()}
        given = row.get("attributes")
        row["attributes"] = {**given, **named} if isinstance(given, dict) else named
    return row


def _table_files(kind: str, source: Path) -> dict[str, Path]:
    """Table → file, items first."""
    if not source.is_dir():
        return {"items": source}
    files: dict[str, Path] = {}
    for table in FIELDS:
        found = [p for s in SUFFIXES[kind] if (p := source / f"{table}{s}").is_file()]
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise ConfigError(f"{source} holds both {names}; keep one")
        if found:
            files[table] = found[0]
    if "items" not in files:
        names = ", ".join(f"items{suffix}" for suffix in SUFFIXES[kind])
        there = _listed(sorted(path.name for path in source.iterdir())) or "nothing"
        raise ConfigError(f"{source} has no items file ({names}); it holds {there}")
    return files


def _left_out(source: Path, read: set[Path]) -> list[str]:
    """Files of a source folder that are not read but have a table's name or a data suffix."""
    if not source.is_dir():
        return []
    suffixes = tuple(suffix for group in SUFFIXES.values() for suffix in group)
    others = (path.name for path in source.iterdir() if path not in read and path.is_file())
    return sorted(
        name
        for name in others
        if name.lower().endswith(suffixes) or name.lower().partition(".")[0] in FIELDS
    )


def _listed(names: list[str]) -> str:
    more = ", …" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _columns_of(rows: list[SourceRow | BadRow]) -> list[str]:
    found: dict[str, None] = {}
    for row in rows:
        if isinstance(row, SourceRow):
            found.update(dict.fromkeys(row.values))
    return list(found)


def _check_columns(
    table: str, path: Path, mapping: TableMapping, available: list[str], *, complete: bool
) -> None:
    """JSON lines may leave out an optional column for long; a header is complete."""
    wanted = [(field, mapping.column(field)) for field in REQUIRED[table]]
    if complete:
        wanted += [*mapping.columns.items(), *mapping.attributes.items()]
    for field, column in wanted:
        if column not in available:
            names = ", ".join(available) or "none"
            raise ConfigError(
                f"{path}: no column {column!r} for {table} field {field!r}; "
                f"available columns: {names}. Name the right one in a mapping file"
            )


def _ignored(table: str, mapping: TableMapping, available: list[str]) -> list[str]:
    used = _used(table, mapping)
    return [column for column in available if column not in used]


def _used(table: str, mapping: TableMapping) -> set[str]:
    return {mapping.column(field) for field in FIELDS[table]} | set(mapping.attributes.values())
