"""`onesearch index compact|drift`: a registry's catalogue as a new generation; codec drift."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from models.registry.registry import DEFAULT_REGISTRY
from server.cli.changes import ENCODER_KINDS, Live, Snapshot, opened_for_changes
from server.settings import ENVIRONMENT_PREFIX

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
EXIT_DRIFTED = 1


def compact(
    registry: Annotated[
        Path,
        typer.Option(help="Registry folder.", envvar=f"{ENVIRONMENT_PREFIX}REGISTRY"),
    ] = DEFAULT_REGISTRY,
    live: Annotated[
        Path | None,
        typer.Option(
            "--live",
            help="Folder of live directories, as the server's; beside the snapshots if not given.",
            envvar=f"{ENVIRONMENT_PREFIX}LIVE_DIRECTORY",
        ),
    ] = None,
    changes: Annotated[
        int | None, typer.Option(min=1, help="Only when at least this many changes wait …")
    ] = None,
    age_hours: Annotated[
        float | None, typer.Option(min=0, help="… or the champion is older than this.")
    ] = None,
    who: Annotated[str, typer.Option(help="Whose decision it is; you, unless given.")] = "",
    why: Annotated[str, typer.Option(help="The reason, for the history.")] = "",
    as_json: Json = False,
) -> None:
    """Publish the champion's catalogue with its changes as a generation, and make that champion.

    Also while a server takes changes: it goes on with them. The checkpoint stays.
    """
    from index.live.catalogue import CatalogueHeld
    from models.registry.compaction import Due, check_free, compact_view
    from models.registry.compaction import compact as compact_catalogue
    from models.registry.registry import Provenance, Registry
    from server.catalogue import settled_view
    from server.choice import changes_of

    import_module(ENCODER_KINDS)
    opened, by = Registry(registry), Provenance(who, why)
    champion = opened.choose(verify=False).record
    check_free(opened, champion)
    snapshot, _ = opened.paths(champion)
    directory = changes_of(opened, champion, live)
    view = settled_view(snapshot, directory, verify=False)
    age_s = None if age_hours is None else age_hours * 3600
    due = Due(1 if changes is None and age_s is None else changes, age_s)
    made, held = champion, False
    if due.holds(champion, view.sequence, time.time()):
        try:
            with opened_for_changes(snapshot, directory) as catalogue:
                made = compact_catalogue(opened, champion, catalogue, by)
        except CatalogueHeld:
            held = True
            made = compact_view(opened, champion, view, by)
    facts = {
        "compacted": made is not champion,
        "generation": made.version,
        "before": champion.version,
        "snapshot": str(opened.paths(made)[0]),
        "sequence": made.catalogue_sequence,
        "pending_changes": view.sequence - champion.catalogue_sequence,
        "items": made.lineage.get("counts", {}).get("items", 0),
        "held_by_server": held,
    }
    if as_json:
        typer.echo(orjson.dumps(facts).decode())
    elif made is champion:
        typer.echo(f"not due: {facts['pending_changes']:,} changes since {champion.version}")
    else:
        typer.echo(
            f"generation {made.version}: {facts['items']:,} items through change "
            f"{made.catalogue_sequence:,}, champion in place of {champion.version}"
        )


def drift(
    snapshot: Snapshot,
    live: Live = None,
    check: Annotated[
        bool, typer.Option("--check", help="Status 1 when the codec does not fit any more.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Whether SNAPSHOT's codec still fits what was added since its build."""
    from index.drift import MAX_ERROR_RATIO, MIN_ITEMS, MIN_USE_RATIO, DriftMeter
    from server.catalogue import settled_view

    import_module(ENCODER_KINDS)
    view = settled_view(snapshot, live, verify=False)
    found = DriftMeter().measure(view)
    facts: dict[str, Any] = {
        "index_version": view.version,
        "added_items": found.items,
        "quantisation_error": {
            "added": found.error,
            "own": found.own_error,
            "ratio": found.error_ratio,
            "limit": MAX_ERROR_RATIO,
        },
        "codes_used": {
            "added": found.codes,
            "expected": found.expected_codes,
            "CUR_L1": found.codes / view.layout.level_sizes[0],
            "ratio": found.code_use_ratio,
            "limit": MIN_USE_RATIO,
        },
        "sids_used": {
            "added": found.sids,
            "expected": found.expected_sids,
            "new": found.new_sids,
            "ratio": found.sid_use_ratio,
            "limit": MIN_USE_RATIO,
        },
        "verdict": found.verdict,
        "verdict_from_items": MIN_ITEMS,
    }
    if as_json:
        typer.echo(orjson.dumps(facts).decode())
    else:
        for name, value in facts.items():
            parts = value.items() if isinstance(value, dict) else [("", value)]
            for part, number in parts:
                told = f"{number:.4g}" if isinstance(number, float) else str(number)
                typer.echo(f"{name}{'.' if part else ''}{part}: {told}")
    if check and found.verdict == "drifted":
        raise typer.Exit(EXIT_DRIFTED)
