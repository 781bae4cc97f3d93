"""`onesearch generations`: the registry's generations, and which of them is champion.

A generation is named by `champion`, `challenger`, `previous`, its version, or the start of one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from index.errors import ConfigError
from models.registry import promotion, publication
from models.registry.canary import start_canary, stop_canary
from models.registry.promotion import UNCHANGED
from models.registry.registry import DEFAULT_REGISTRY, Provenance, Registry
from models.registry.retention import KEPT_GENERATIONS, MIN_AGE_S, Retention
from models.registry.retention import collect as collect_garbage
from server.cli.announcement import announce
from server.cli.generation_facts import (
    alias_facts,
    event_line,
    moment,
    row_of,
    tell,
    tell_aliases,
)
from server.settings import DEFAULT_CHAMPION, ENVIRONMENT_PREFIX

REGISTRY_VARIABLE = f"{ENVIRONMENT_PREFIX}REGISTRY"
EVENTS_SHOWN = 20
EXIT_DAMAGED = 1

app = typer.Typer(
    no_args_is_help=True, help="Publish, promote and roll back generations; see what is there."
)

Folder = Annotated[
    Path, typer.Option("--registry", help="Registry folder.", envvar=REGISTRY_VARIABLE)
]
Name = Annotated[
    str, typer.Argument(help="champion, challenger, previous, or (the start of) a version.")
]
Who = Annotated[str, typer.Option(help="Whose decision it is; you, unless given.")]
Why = Annotated[str, typer.Option(help="The reason, for the history.")]
Expect = Annotated[
    str | None,
    typer.Option(
        "--expect-champion", help="Refuse if another generation is champion; 'none' for none."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command("list")
def list_generations(registry: Folder = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """All generations, newest first, with their aliases and pins."""
    opened = _existing(registry)
    records, damaged = opened.records()
    aliases, leases = opened.aliases(), opened.leases()
    rows = [row_of(record, aliases) for record in records]
    for row in rows:
        row["pins"] = sum(lease.generation == row["version"] for lease in leases)
    if as_json:
        tell({"aliases": alias_facts(aliases), "generations": rows, "damaged": damaged})
        return
    table = Table("generation", "aliases", "created", "snapshot", "checkpoint", "items", "pins", "")
    for row in rows:
        table.add_row(
            row["version"],
            ", ".join(row["aliases"]),
            moment(row["created"]),
            row["snapshot"],
            row["checkpoint"],
            f"{row['lineage'].get('counts', {}).get('items', 0):,}",
            str(row["pins"]),
            "simulated" if row["simulated"] else "",
        )
    console = Console(highlight=False, width=120)
    console.print(table)
    for note in (*damaged.values(), *aliases.damaged):
        console.print(f"damaged: {note}", markup=False)


@app.command("show")
def show(
    name: Name = "champion", registry: Folder = DEFAULT_REGISTRY, as_json: Json = False
) -> None:
    """One generation: its parts, where they come from, what was measured, what happened to it."""
    opened = _existing(registry)
    version = opened.resolve(name)
    record = opened.record(version)
    snapshot, checkpoint = opened.paths(record)
    facts: dict[str, Any] = row_of(record, opened.aliases()) | {
        "snapshot_path": str(snapshot),
        "checkpoint_path": str(checkpoint),
        "pins": [
            lease.why or str(lease.process)
            for lease in opened.leases()
            if lease.generation == version
        ],
        "events": [event for event in opened.events() if version in event.values()],
    }
    if as_json:
        tell(facts)
        return
    for key, value in facts.items():
        if key == "events":
            for event in value[-EVENTS_SHOWN:]:
                typer.echo(f"event: {event_line(event)}")
        elif key == "created":
            typer.echo(f"created: {moment(value)}")
        else:
            shown = value if isinstance(value, str) else orjson.dumps(value).decode()
            typer.echo(f"{key}: {shown}")


@app.command("publish")
def publish(
    snapshot: Annotated[
        str | None, typer.Argument(help="Snapshot directory, or a version that is stored.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Argument(help="Checkpoint directory, or a version that is stored.")
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Remove the directories once they are registered.")
    ] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Make it champion.")] = False,
    challenger: Annotated[bool, typer.Option("--challenger", help="Make it challenger.")] = False,
    champion_file: Annotated[
        Path, typer.Option(help="Names the pair when neither directory is given.")
    ] = DEFAULT_CHAMPION,
    who: Who = "",
    why: Why = "",
    registry: Folder = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:
    """Check SNAPSHOT and CHECKPOINT, store them, and register them as a generation."""
    if promote and challenger:
        raise ConfigError("--promote and --challenger exclude each other")
    snapshot, checkpoint = _pair(snapshot, checkpoint, champion_file)
    opened, by = Registry(registry), Provenance(who, why)
    done = publication.publish(opened, snapshot, checkpoint, move=move, by=by)
    version = done.record.version
    if promote:
        promotion.promote(opened, version, by=by)
    if challenger:
        promotion.challenge(opened, version, by=by)
    if promote or challenger:
        announce(opened.aliases())
    facts = {"new": done.is_new, "notes": list(done.notes), **done.record.to_json()}
    facts["aliases"] = opened.aliases().of(version)
    if as_json:
        tell(facts)
        return
    state = "published" if done.is_new else "was published before"
    named = f" ({', '.join(facts['aliases'])})" if facts["aliases"] else ""
    typer.echo(f"generation {version} {state}{named}")
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)


@app.command("promote")
def promote(
    name: Name,
    expect: Expect = None,
    who: Who = "",
    why: Why = "",
    registry: Folder = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:
    """Verify a generation and make it champion; the champion becomes previous."""
    opened = _existing(registry)
    version = opened.resolve(name)
    expected = _expected(opened, expect)
    tell_aliases(
        promotion.promote(opened, version, expected=expected, by=Provenance(who, why)), as_json
    )


@app.command("challenge")
def challenge(
    name: Annotated[str, typer.Argument(help="As for promote; 'none' takes the alias away.")],
    who: Who = "",
    why: Why = "",
    registry: Folder = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:
    """Verify a generation and make it challenger."""
    opened = _existing(registry)
    version = None if name == "none" else opened.resolve(name)
    tell_aliases(promotion.challenge(opened, version, by=Provenance(who, why)), as_json)


@app.command("canary")
def canary(
    name: Annotated[
        str, typer.Argument(help="As for promote; 'stop' gives everybody the champion again.")
    ],
    share: Annotated[
        float | None, typer.Option(help="Of the users, above 0 and below 1; 0.05 is one in twenty.")
    ] = None,
    experiment: Annotated[
        str, typer.Option(help="Its name, which decides who is in it; made up unless given.")
    ] = "",
    expect: Expect = None,
    expect_challenger: Annotated[
        str | None,
        typer.Option(
            "--expect-challenger",
            help="Refuse if another generation is challenger; names the one whose canary may end.",
        ),
    ] = None,
    who: Who = "",
    why: Why = "",
    registry: Folder = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:
    """Verify a generation, make it challenger, and let it answer a share of the users. A promotion
    ends it."""
    opened, by = _existing(registry), Provenance(who, why)
    if name == "stop":
        if share is not None or experiment or (expect, expect_challenger) != (None, None):
            raise ConfigError("canary stop takes neither --share, --experiment nor expectations")
        tell_aliases(stop_canary(opened, by=by), as_json)
        return
    if share is None:
        raise ConfigError("--share is missing: which part of the users, such as 0.05")
    state = start_canary(
        opened,
        opened.resolve(name),
        share,
        experiment=experiment,
        expected=_expected(opened, expect),
        expected_challenger=_expected(opened, expect_challenger),
        by=by,
    )
    tell_aliases(state, as_json)


@app.command("rollback")
def rollback(
    expect: Expect = None,
    who: Who = "",
    why: Why = "",
    registry: Folder = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:
    """Make the previous champion champion again; the two change places."""
    opened = _existing(registry)
    expected = _expected(opened, expect)
    tell_aliases(promotion.rollback(opened, expected=expected, by=Provenance(who, why)), as_json)


@app.command("verify")
def verify(
    name: Annotated[str | None, typer.Argument(help="A generation; all unless given.")] = None,
    registry: Folder = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:
    """Read every file of a generation or of all, open its parts, check that they fit. Status 1 and
    a line for each problem when something is damaged."""
    opened = _existing(registry)
    if name is None:
        records, damaged = opened.records()
        versions = [*(record.version for record in records), *damaged]
    else:
        versions = [opened.resolve(name)]
    found = {version: opened.problems(version) for version in versions}
    aliases = opened.problems_of_aliases() if name is None else []
    sound = not aliases and not any(found.values())
    if as_json:
        tell({"ok": sound, "generations": found, "aliases": aliases})
    else:
        for version, problems in found.items():
            for problem in problems:
                typer.echo(f"{version}: damaged: {problem}")
            if not problems:
                typer.echo(f"{version}: sound")
        for problem in aliases:
            typer.echo(f"aliases: damaged: {problem}")
    if not sound:
        raise typer.Exit(EXIT_DAMAGED)


@app.command("gc")
def collect(
    keep: Annotated[
        int, typer.Option(min=0, help="The newest generations that stay.")
    ] = KEPT_GENERATIONS,
    min_age_minutes: Annotated[
        float, typer.Option(min=0, help="Younger generations stay.")
    ] = MIN_AGE_S / 60,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say it, do not do it.")] = False,
    who: Who = "",
    why: Why = "",
    registry: Folder = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:
    """Remove generations that nothing names, pins or keeps, and the parts that none uses."""
    retention = Retention(keep, min_age_minutes * 60)
    sweep = collect_garbage(
        _existing(registry), retention, dry_run=dry_run, by=Provenance(who, why)
    )
    if as_json:
        tell(
            {
                "dry_run": dry_run,
                "removed": {
                    "generations": sweep.generations,
                    "snapshots": sweep.snapshots,
                    "checkpoints": sweep.checkpoints,
                },
                "kept": sweep.kept,
                "kept_snapshots": sweep.kept_snapshots,
            }
        )
        return
    verb = "would go" if dry_run else "removed"
    for kind, versions in (
        ("generation", sweep.generations),
        ("snapshot", sweep.snapshots),
        ("checkpoint", sweep.checkpoints),
    ):
        for version in versions:
            typer.echo(f"{kind} {version}: {verb}")
    for version, reasons in sweep.kept.items():
        typer.echo(f"generation {version}: stays: {', '.join(reasons)}")
    for version, reason in sweep.kept_snapshots.items():
        typer.echo(f"snapshot {version}: stays: {reason}")


@app.command("events")
def events(
    last: Annotated[int, typer.Option(min=1, help="How many.")] = EVENTS_SHOWN,
    registry: Folder = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:
    """What happened, who did it, and why; oldest first."""
    found = _existing(registry).events()[-last:]
    if as_json:
        tell({"events": found})
        return
    for event in found:
        typer.echo(event_line(event))


def _existing(folder: Path) -> Registry:
    """Raises ConfigError where there is no registry."""
    opened = Registry(folder)
    if not opened.exists:
        raise ConfigError(
            f"there is no registry at {folder}: make one with `onesearch generations publish`, or "
            f"name it with --registry ({REGISTRY_VARIABLE})"
        )
    return opened


def _pair(snapshot: str | None, checkpoint: str | None, champion: Path) -> tuple[str, str]:
    """What is given, else what the champion file names."""
    if snapshot is not None and checkpoint is not None:
        return snapshot, checkpoint
    if snapshot is not None:
        raise ConfigError("CHECKPOINT is missing: give both SNAPSHOT and CHECKPOINT, or neither")
    from server.generation import read_champion

    named = read_champion(champion)
    return str(named[0]), str(named[1])


def _expected(opened: Registry, expect: str | None) -> Any:
    if expect is None:
        return UNCHANGED
    return None if expect == "none" else opened.resolve(expect)
