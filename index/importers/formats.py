"""`import_dataset`: any known format → a published dataset."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from index import artifact
from index.dataset import KIND
from index.errors import ArtifactError, ConfigError, DataError
from index.importers.amazon import import_amazon
from index.importers.generic import import_generic
from index.importers.homedepot import import_homedepot
from index.importers.intake import Intake, Progress, Summary
from index.importers.kuaisearch import import_kuaisearch
from index.importers.mapping import Mapping

Importer = Callable[[Path, Intake, Mapping], None]

FORMATS: dict[str, Importer] = {
    "homedepot": import_homedepot,
    "amazon": import_amazon,
    "kuaisearch": import_kuaisearch,
    "jsonl": partial(import_generic, "jsonl"),
    "csv": partial(import_generic, "csv"),
    "parquet": partial(import_generic, "parquet"),
}


# Formats whose documentation says from which grade an item is relevant.
RELEVANT_FROM = {"homedepot": 2.5}
SOURCE_FACTS = "dataset.json"


@dataclass(frozen=True, slots=True)
class Imported:
    """A published dataset and how it came about."""

    path: Path
    version: str
    summary: Summary

    def to_json(self) -> dict[str, Any]:
        return {"dataset": str(self.path), "version": self.version, **self.summary.to_json()}


def import_dataset(
    kind: str,
    source: Path,
    target: Path,
    *,
    mapping: Mapping | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Read `source` in a known format and publish it as the dataset `target`.

    The same source gives the same version. Raises ConfigError for an unknown format, a missing
    file or column; DataError for a file that cannot be read, for a source without a single good
    item, and with `strict` for the first bad row; ArtifactError when `target` exists and
    `overwrite` is false, or is no dataset.
    """
    importer = FORMATS.get(kind)
    if importer is None:
        raise ConfigError(f"unknown format {kind!r}; known are {', '.join(FORMATS)}")
    if not source.exists():
        raise ConfigError(f"source {source} does not exist")
    if target.exists():
        if not overwrite:
            raise ArtifactError(f"{target} already exists; choose another name or --overwrite it")
        artifact.read(target, KIND, verify=False)  # never replaces anything but a dataset
    with artifact.create(target, KIND, overwrite=overwrite) as draft:
        with Intake(draft.path, strict=strict, progress=progress) as intake:
            importer(source, intake, mapping or Mapping())
            summary = intake.finish()
        stated = _stated(source)
        draft.manifest.update(
            source=stated.get("source", kind),
            simulated=stated.get("simulated", False),
            relevant_from=stated.get("relevant_from", RELEVANT_FROM.get(kind)),
            queries_derived=kind == "amazon",
            summary=summary.to_json(),
        )
    version = artifact.read(target, KIND, verify=False).version
    return Imported(target, version, summary)


def _stated(source: Path) -> dict[str, Any]:
    """What a source folder says of itself in dataset.json: `source`, `simulated`, `relevant_from`.

    Raises DataError when the file is there and is no JSON object, or an entry has the wrong type.
    """
    path = source / SOURCE_FACTS
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"is not valid JSON: {error}", path=path) from None
    if not isinstance(facts, dict):
        raise DataError("must be a JSON object", path=path)
    stated = cast(dict[str, Any], facts)
    for field, fits, wanted in (
        ("source", _is_text, "text"),
        ("simulated", _is_boolean, "true or false"),
        ("relevant_from", _is_finite_number, "a finite number"),
    ):
        if field in stated and not fits(stated[field]):
            message = f"must be {wanted}, not {json.dumps(stated[field])[:200]}"
            raise DataError(message, path=path, field=field)
    return stated


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_boolean(value: object) -> bool:
    return isinstance(value, bool)


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # false for nan, and for integers beyond any float
