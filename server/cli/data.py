"""`onesearch data`: import catalogues and logs, and check the datasets they become."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import orjson
import pyarrow.csv as pa_csv
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from index import artifact
from index.dataset import EVENT_KINDS, Dataset
from index.errors import ConfigError, DataError
from index.importers.formats import FORMATS, Imported, import_dataset
from index.importers.mapping import Mapping, load_mapping
from index.validation import Validation, validate_dataset

app = typer.Typer(no_args_is_help=True, help="Import and check datasets.")

EXIT_BROKEN = 1


@app.command("import")
def import_command(
    kind: Annotated[str, typer.Argument(metavar="FORMAT", help=" | ".join(FORMATS))],
    source: Annotated[Path, typer.Argument(help="File or folder to read.")],
    dataset: Annotated[Path, typer.Argument(help="Directory to write.")],
    mapping: Annotated[
        Path | None, typer.Option(help="TOML or JSON: which column feeds which field.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad row.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the dataset if it exists.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Read SOURCE and publish it as a dataset. Bad rows go to rejected.jsonl, with the reason."""
    chosen = load_mapping(mapping) if mapping is not None else Mapping()
    errors = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(f"reading {source}", total=None)

        def show(table: str, rows: int) -> None:
            bar.update(task, description=f"{table}: {rows:,} rows read")

        imported = import_dataset(
            kind,
            source,
            dataset,
            mapping=chosen,
            strict=strict,
            overwrite=overwrite,
            progress=show,
        )
    if as_json:
        _print_json(imported.to_json())
    else:
        _print_import(imported)


@app.command("validate")
def validate_command(
    dataset: Annotated[Path, typer.Argument(help="Dataset directory.")],
    relevant_from: Annotated[
        float | None,
        typer.Option(
            help="Lowest relevant grade; default: what the dataset states, else ¾ of the way up."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Report on a dataset; exits with status 1 when something in it is broken."""
    from models.training.leakage import find_leaks
    from models.training.visits import read_visits

    validation = validate_dataset(dataset, relevant_from=relevant_from)
    if validation.ok:
        opened = Dataset.open(dataset, verify=False)
        training = read_visits(opened, "train")
        leaks = find_leaks(opened, training, opened.queries("train"))
        validation.problems.extend(f"leak: {leak}" for leak in leaks)
        validation.facts["searches"] = {"train": len(training)} | {
            split: len(read_visits(opened, split)) for split in ("validation", "test")
        }
    if as_json:
        _print_json(validation.to_json())
    else:
        _print_validation(validation)
    if not validation.ok:
        raise typer.Exit(EXIT_BROKEN)


@app.command("simulate")
def simulate_command(
    dataset: Annotated[Path, typer.Argument(help="Dataset with judgments, without events.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Dataset directory to write.")],
    users: Annotated[int, typer.Option(min=1, help="Simulated users.")] = 1000,
    sessions: Annotated[int, typer.Option(min=1, help="Simulated searches.")] = 40_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 7,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """DATASET with users, clicks and orders drawn from a click model; all of it is simulated."""
    from index.importers.simulated_behaviour import SimulationSettings, simulate_behaviour

    settings = SimulationSettings(users=users, sessions=sessions, seed=seed)
    made = simulate_behaviour(Dataset.open(dataset), out, settings, overwrite=overwrite)
    kinds = Counter(made.events.column("kind").to_pylist())
    facts = {
        "dataset": str(out),
        "version": made.version,
        "simulated": True,
        "users": users,
        "sessions": sessions,
        "events": dict(kinds),
    }
    if as_json:
        _print_json(facts)
    else:
        counted = ", ".join(f"{kinds[kind]:,} {kind}s" for kind in EVENT_KINDS)
        typer.echo(f"{out}: simulated, {counted}; version {made.version}")


@app.command("demo-shop")
def demo_shop_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Dataset directory to write.")],
    items: Annotated[int, typer.Option(min=60, help="Items of the shop.")] = 6000,
    users: Annotated[int, typer.Option(min=1, help="Simulated users.")] = 2000,
    sessions: Annotated[int, typer.Option(min=1, help="Simulated searches.")] = 12_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 7,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """The simulated shop of `onesearch demo` as a dataset, in any size."""
    from index.importers.demo_shop import generate

    with TemporaryDirectory() as folder:
        generate(Path(folder), seed=seed, n_items=items, n_users=users, n_sessions=sessions)
        imported = import_dataset("jsonl", Path(folder), out, overwrite=overwrite)
    if as_json:
        _print_json(imported.to_json())
    else:
        _print_import(imported)


@app.command("export-judgments")
def export_judgments_command(
    dataset: Annotated[Path, typer.Argument(help="Dataset directory.")],
    file: Annotated[Path, typer.Argument(help="CSV file to write: query, item_id, grade.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Write the judgments of one split to FILE, as `onesearch evaluate` reads them."""
    if file.exists() and not overwrite:
        raise ConfigError(f"{file} already exists; choose another name or use --overwrite")
    opened = Dataset.open(dataset)
    table = opened.judgments_of(split)
    if table.num_rows == 0:
        raise DataError(f"the {split} split has no judgments", path=dataset)
    content = io.BytesIO()
    pa_csv.write_csv(table.select(["query", "item_id", "grade"]), content)
    artifact.write_file(file, content.getvalue())
    facts = {
        "file": str(file),
        "split": split,
        "judgments": table.num_rows,
        "queries": len(table.column("query").unique()),
        "relevant_from": opened.manifest.get("relevant_from"),
    }
    if as_json:
        _print_json(facts)
    else:
        typer.echo(f"{file}: {facts['judgments']:,} judgments of {facts['queries']:,} queries")


def _print_import(imported: Imported) -> None:
    summary = imported.summary
    console = Console(highlight=False)
    table = Table("table", "rows", "rejected", "warnings", title=f"{imported.path}")
    for name, rows in summary.rows.items():
        rejected = sum(summary.rejected.get(name, {}).values())
        warnings = sum(summary.warnings.get(name, {}).values())
        table.add_row(name, f"{rows:,}", f"{rejected:,}", f"{warnings:,}")
    console.print(table)
    for title, counts in (("rejected", summary.rejected), ("warning", summary.warnings)):
        for name, reasons in counts.items():
            for reason, count in reasons.items():
                typer.echo(f"{title}: {name}: {reason}: {count:,}")
    sizes = ", ".join(f"{name} {count:,}" for name, count in summary.splits.items())
    typer.echo(f"queries: {sizes}")
    for note in summary.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"version {imported.version}")


def _print_validation(validation: Validation) -> None:
    console = Console(highlight=False)
    for section, facts in validation.facts.items():
        if not isinstance(facts, dict):
            typer.echo(f"{section}: {facts}")
            continue
        table = Table("fact", "value", title=section, title_justify="left")
        for name, value in _flat(facts):
            table.add_row(name, value)
        console.print(table)
    for warning in validation.warnings:
        typer.echo(f"warning: {warning}")
    for problem in validation.problems:
        typer.echo(f"broken: {problem}")
    typer.echo("broken" if validation.problems else "sound")


def _flat(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            rows.extend((f"{name} {key}", part) for key, part in _flat(value))
        else:
            rows.append((name, f"{value:,}" if isinstance(value, int) else str(value)))
    return rows


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(orjson.dumps(data).decode())
