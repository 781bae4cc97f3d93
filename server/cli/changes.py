"""`onesearch index add|remove|changes|merge`: the catalogue's changes without a server.

They work on the live directory itself, which has one writer: while a server holds it, changes go to
that server (PUT, PATCH, DELETE /v1/items). Reading is always possible.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import orjson
import typer

from index.errors import ConfigError

if TYPE_CHECKING:
    from index.live.catalogue import LiveCatalogue
    from index.live.changes import Change

# Registers the kinds of encoder that a snapshot may hold beside the static one.
ENCODER_KINDS = "models.text_encoders"
BATCH = 1_000
SHOWN = 20
IF_HELD = "A server takes them as PUT, PATCH or DELETE /v1/items"

Snapshot = Annotated[Path, typer.Argument(help="Snapshot directory.")]
Live = Annotated[
    Path | None, typer.Option("--live", help="Live directory; SNAPSHOT.live unless given.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def add(
    snapshot: Snapshot,
    file: Annotated[Path, typer.Argument(help="Items: .jsonl, .csv, .tsv (also .gz), .parquet.")],
    mapping: Annotated[
        Path | None, typer.Option(help="TOML or JSON: which column feeds which field.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad row.")] = False,
    live: Live = None,
    as_json: Json = False,
) -> None:
    """Add the items of FILE to SNAPSHOT's catalogue, or replace those of the same ids."""
    from index.live.changes import Upsert

    with tempfile.TemporaryDirectory(prefix="onesearch-") as folder:
        summary = _read_items(file, Path(folder), mapping, strict=strict)
        with opened_for_changes(snapshot, live) as catalogue:
            done = _apply(catalogue, (Upsert(item) for item in _items_in(Path(folder))))
    rejected = summary.rejected.get("items", {})
    facts = {**done, "unreadable": rejected, "warnings": summary.warnings.get("items", {})}
    _tell(facts, as_json)


def remove(
    snapshot: Snapshot,
    item_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID…", help="Items to remove.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Text file, one item id a line.")] = None,
    live: Live = None,
    as_json: Json = False,
) -> None:
    """Remove items from SNAPSHOT's catalogue."""
    from index.live.changes import Delete

    named = [*(item_ids or []), *(_ids_in(file) if file is not None else [])]
    if not named:
        raise ConfigError("no item is named: give item ids, or --file with one a line")
    with opened_for_changes(snapshot, live) as catalogue:
        _tell(_apply(catalogue, (Delete(item_id) for item_id in named)), as_json)


def changes(snapshot: Snapshot, live: Live = None, as_json: Json = False) -> None:
    """What SNAPSHOT's catalogue is now, and what a merge has yet to take up."""
    _tell(changed(snapshot, live), as_json)


def changed(snapshot: Path, live: Path | None, *, verify: bool = False) -> dict[str, Any]:
    """A snapshot's catalogue in numbers; reads the whole log. Raises ArtifactError."""
    from index.live.catalogue import live_directory
    from index.live.log import segments_of
    from server.catalogue import settled_view

    import_module(ENCODER_KINDS)
    directory = live or live_directory(snapshot)
    view = settled_view(snapshot, live, verify=verify)
    sizes = [segment.stat().st_size for segment in segments_of(directory / "log")]
    merged = view.manifest.get("live", {}).get("sequence", 0)
    return {
        "index_version": view.version,
        "sequence": view.sequence,
        "merged_sequence": merged,
        "pending_changes": view.sequence - merged,
        "items": view.n_items,
        "sids": view.trie.n_leaves - len(view.empty_leaves),
        "added_rows": view.items.n_added,
        "deleted_rows": view.n_rows - view.n_items,
        "log_bytes": sum(sizes),
        "live_directory": str(directory),
    }


def merge(
    snapshot: Snapshot,
    target: Annotated[
        Path | None,
        typer.Argument(help="Snapshot to write; without it the live directory's own base."),
    ] = None,
    live: Live = None,
    as_json: Json = False,
) -> None:
    """Write the catalogue with its changes as one snapshot.

    With TARGET as a snapshot of its own, also while a server has the catalogue; without it as the
    new base that the catalogue goes on from.
    """
    from index import artifact
    from index.live.merge import write_merged
    from server.catalogue import settled_view

    import_module(ENCODER_KINDS)
    if target is not None:
        artifact.check_free(target, "snapshot", overwrite=False)
        view = settled_view(snapshot, live, verify=False)
        write_merged(view, target)
    else:
        with opened_for_changes(snapshot, live) as catalogue:
            view = catalogue.merge()
        target = view.path
    facts = {
        "snapshot": str(target),
        "version": artifact.read(target, "snapshot", verify=False).version,
        "sequence": view.sequence,
        "items": view.n_items,
    }
    _tell(facts, as_json)


def has_changes(snapshot: Path, live: Path | None) -> bool:
    """Whether there is a live directory."""
    from index.live.catalogue import live_directory

    return (live or live_directory(snapshot)).is_dir()


def opened_for_changes(snapshot: Path, live: Path | None) -> LiveCatalogue:
    """A snapshot's catalogue, written by this process. Raises CatalogueHeld where another one has
    it, ArtifactError for damage."""
    from index.live.catalogue import LiveSettings
    from server.catalogue import open_catalogue

    import_module(ENCODER_KINDS)
    settings = LiveSettings(merge_automatically=False, publish_interval_s=0)
    return open_catalogue(snapshot, live, settings, verify=False, apart=False, if_held=IF_HELD)


def _apply(catalogue: LiveCatalogue, changes: Iterator[Change]) -> dict[str, Any]:
    """Make changes, a batch at a time, and count."""
    applied, index = 0, 0
    reasons: Counter[str] = Counter()
    rejected: list[dict[str, Any]] = []
    while batch := list(islice(changes, BATCH)):
        outcome = catalogue.apply(batch)
        applied += outcome.applied
        for bad in outcome.rejected:
            reasons[bad.reason] += 1
            place = {"index": index + bad.index, "item_id": bad.item_id, "reason": bad.reason}
            rejected.append(place)
        index += len(batch)
    view = catalogue.view
    return {
        "applied": applied,
        "rejected": len(rejected),
        "reasons": dict(reasons),
        "rejected_changes": rejected[:SHOWN],
        "sequence": view.sequence,
        "items": view.n_items,
        "index_version": view.version,
    }


def _read_items(file: Path, folder: Path, mapping: Path | None, *, strict: bool) -> Any:
    """Clean the rows of a file as an import does, into `folder`; the import's summary."""
    from index.importers.generic import import_table
    from index.importers.intake import Intake
    from index.importers.mapping import Mapping, load_mapping

    chosen = load_mapping(mapping) if mapping is not None else Mapping()
    with Intake(folder, strict=strict) as intake:
        import_table("items", file, _kind_of(file), intake, chosen.table("items"), chosen.delimiter)
        return intake.finish()


def _items_in(folder: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(folder / "items.parquet") as file:
        for batch in file.iter_batches(BATCH):
            for item in cast(list[dict[str, Any]], batch.to_pylist()):
                if item["attributes"] is not None:
                    item["attributes"] = dict(item["attributes"])
                yield item


def _kind_of(file: Path) -> str:
    from index.importers.records import SUFFIXES

    for kind, suffixes in SUFFIXES.items():
        if file.name.lower().endswith(suffixes):
            return kind
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise ConfigError(f"{file}: unknown kind of file; known are {known}")


def _ids_in(file: Path) -> Sequence[str]:
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{file} is not there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(orjson.dumps(facts).decode())
        return
    for name, value in facts.items():
        if name == "rejected_changes":
            for bad in value:
                typer.echo(f"rejected {bad['item_id']}: {bad['reason']}")
        elif isinstance(value, dict):
            for inner, count in cast(dict[str, int], value).items():
                typer.echo(f"{name}: {inner}: {count:,}")
        else:
            typer.echo(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")
