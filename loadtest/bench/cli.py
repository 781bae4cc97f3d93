"""`onesearch bench NAME`: measure against peers, in one run on one machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from index.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Bench:
    """A module with `rows(quick) -> list[Row]`. One with `TABLES`, the same by name of its parts,
    can be run part by part."""

    module: str
    help: str


BENCHES = {
    "trie": Bench("loadtest.bench.trie", "build, size, opening and filters of the trie"),
    "decode": Bench("loadtest.bench.decode", "one level of beam search without the model"),
    "filters": Bench("loadtest.bench.filters", "searches under filters"),
    "changes": Bench("loadtest.bench.changes", "catalogue changes while searching"),
    "engine": Bench("loadtest.bench.engine", "whole searches of the same checkpoint"),
    "parity": Bench("loadtest.bench.parity", "vLLM's engine beside ours: answers, speed"),
    "keywords": Bench("loadtest.bench.keywords", "keywords in searches, and their queue"),
    "swaps": Bench("loadtest.bench.swaps", "generations swapped and rolled back under load"),
    "train": Bench("loadtest.bench.train", "training steps, each loss beside plain fine-tuning"),
    "footprint": Bench("loadtest.bench.footprint", "memory of a gateway and of entries in Redis"),
    "gateway": Bench("loadtest.bench.gateway", "HTTP, validation and logs, with nothing behind"),
    "overload": Bench("loadtest.bench.overload", "more requests than the machine can answer"),
}
WIDTH = 150
_NAMES = ", ".join(BENCHES)


def bench(
    name: Annotated[str, typer.Argument(help=f"What to measure: {_NAMES}.")],
    quick: Annotated[bool, typer.Option("--quick", help="Smaller settings, fewer rounds.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write NAME.json and plots into this folder.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            help="Only this part; 'list' names the parts. With --snapshot for overload and swaps."
        ),
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option(help="Snapshot, with --checkpoint, where the benchmark takes a pair."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Checkpoint, with --snapshot."),
    ] = None,
) -> None:
    """Measure against peers in interleaved rounds; a ratio above 1 is in our favour."""
    from loadtest.bench.machine import describe_machine
    from loadtest.bench.output import as_json as to_json
    from loadtest.bench.output import print_tables, write_report

    module = _module(name)
    if table == "list":
        typer.echo("\n".join(_tables(module)))
        return
    work = _chosen(name, module, table, snapshot, checkpoint)
    if out is not None:
        _make_writable(out)
    errors = Console(stderr=True, highlight=False)
    machine = describe_machine()
    if machine["busy"]:
        share = machine["load_before"]["busy_share"]
        errors.print(f"warning: the machine is {share:.0%} busy; do not trust these timings")
    report = {"machine": machine, "rows": work(quick)}
    if out is not None:
        stem = name if table is None else f"{name}-{table}"
        for file in write_report(stem, report, out):
            errors.print(f"wrote {file}")
    if as_json:
        typer.echo(to_json(report))
    else:
        print_tables(report, Console(highlight=False, width=WIDTH))


def _make_writable(folder: Path) -> None:
    """Raises ConfigError before minutes are spent on results that cannot be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--out {folder} cannot be written")


def _module(name: str) -> Any:
    if name not in BENCHES:
        raise ConfigError(f"there is no benchmark {name!r}; choose one of {_NAMES}")
    return import_module(BENCHES[name].module)


def _tables(module: Any) -> dict[str, Callable[[bool], list[Any]]]:
    return getattr(module, "TABLES", {"all": module.rows})


def _chosen(
    name: str, module: Any, table: str | None, snapshot: Path | None, checkpoint: Path | None
) -> Callable[[bool], list[Any]]:
    """What to run. Raises ConfigError for parts or options that the benchmark does not have."""
    if (snapshot is None) != (checkpoint is None):
        raise ConfigError("--snapshot and --checkpoint go together")
    work = module.rows
    if table is not None:
        parts = _tables(module)
        if table not in parts:
            raise ConfigError(f"`bench {name}` has no table {table!r}; it has {', '.join(parts)}")
        work = parts[table]
    if snapshot is None:
        return work
    if "snapshot" not in signature(work).parameters:
        raise ConfigError(
            "--snapshot and --checkpoint are for all of "
            "`bench engine|parity|overload|keywords|swaps|footprint`, with a --table for those of "
            "overload and swaps"
        )
    return partial(work, snapshot=snapshot, checkpoint=checkpoint)
