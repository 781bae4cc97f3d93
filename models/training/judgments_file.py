"""Judgments from a CSV or Parquet file with columns query, item_id, grade."""

# pyarrow has no types of its own.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false
from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.errors import ConfigError, DataError
from index.items import ItemTable

COLUMNS = ("query", "item_id", "grade")


class JudgmentsFile(NamedTuple):
    """query → relevant item rows (at least one), and what was left out."""

    relevant: dict[str, NDArray[np.int64]]
    rows: int
    unknown_items: int
    queries_without_relevant: int


def read_judgments(path: Path, relevant_from: float, items: ItemTable) -> JudgmentsFile:
    """Read and resolve item ids. Raises DataError naming file, row and field."""
    if not math.isfinite(relevant_from):
        raise ConfigError(f"--relevant-from {relevant_from} is no grade; give a finite number")
    table = _read(path)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(
            f"there is no column {missing[0]!r}; it has {', '.join(table.column_names)}, "
            f"and {', '.join(COLUMNS)} are needed",
            path=path,
        )
    queries = table.column("query").cast(pa.string()).to_pylist()
    ids = table.column("item_id").cast(pa.string()).to_pylist()
    grades = _grades(path, table)
    for row, (query, item_id) in enumerate(zip(queries, ids, strict=True), 1):
        if not query or not item_id:
            field = "item_id" if query else "query"
            raise DataError("the value is empty", path=path, row=row, field=field)
    rows = items.rows_of(ids)
    relevant: dict[str, set[int]] = defaultdict(set)
    for query, row, grade in zip(queries, rows.tolist(), grades, strict=True):
        if row >= 0 and grade >= relevant_from:
            relevant[query].add(row)
    return JudgmentsFile(
        {query: np.array(sorted(found), np.int64) for query, found in sorted(relevant.items())},
        len(queries),
        int((rows < 0).sum()),
        len(set(queries)) - len(relevant),
    )


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        # Ids such as 00123 must stay text.
        convert = pa_csv.ConvertOptions(column_types={"query": pa.string(), "item_id": pa.string()})
        parse = pa_csv.ParseOptions(newlines_in_values=True)
        return pa_csv.read_csv(path, convert_options=convert, parse_options=parse)
    except FileNotFoundError:
        raise DataError("the file is not there", path=path) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot be read: {error}", path=path) from None


def _grades(path: Path, table: pa.Table) -> list[float]:
    values = table.column("grade").to_pylist()
    grades: list[float] = []
    for row, value in enumerate(values, 1):
        try:
            grade = float(value)
        except (TypeError, ValueError):
            grade = math.nan
        if math.isnan(grade):
            raise DataError(f"{value!r} is no number", path=path, row=row, field="grade")
        grades.append(grade)
    return grades
