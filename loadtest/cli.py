"""`onesearch loadtest run|knee|soak|compare|report`: load on a shop over HTTP, and its report.

Status 0: all objectives hold. 1: one is broken, or `compare` found something clearly slower. 2:
wrong input.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from index.errors import ConfigError
from loadtest.plan import (
    RUN_S,
    KneeSearch,
    Phase,
    Plan,
    knee_phases,
    mixed_phases,
    soak_phases,
)
from loadtest.slo import DEFAULT_FILE

EXIT_BROKEN = 1
MIN_STEP_S = 2.0
DEFAULT_OUT = Path("var/loadtest")
DEFAULT_DEMO = Path("var/demo")

app = typer.Typer(no_args_is_help=True, help="Load on a shop over HTTP, and its report.")
Demo = Annotated[
    Path, typer.Option(help="Of `onesearch demo`: its pair is served, its log is asked.")
]
Url = Annotated[
    str | None, typer.Option(help="A server that runs already, in place of one of its own.")
]
Dataset = Annotated[
    Path | None, typer.Option(help="Whose searches are asked; the demo's unless given.")
]
Queries = Annotated[
    Path | None, typer.Option(help="CSV or Parquet with a column `query`, in place of a dataset.")
]
Out = Annotated[Path, typer.Option(help="Folder of the report.")]
Slo = Annotated[Path, typer.Option(help="Objectives, TOML.")]
Beam = Annotated[int, typer.Option(min=1, max=1024, help="beam_width of every search.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")]


@app.command("run")
def run(
    demo: Demo = DEFAULT_DEMO,
    url: Url = None,
    dataset: Dataset = None,
    queries: Queries = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="All phases together, about; the scenario is scaled.")
    ] = RUN_S / 60,
    changes: Annotated[
        bool, typer.Option("--changes/--no-changes", help="Change the catalogue meanwhile.")
    ] = True,
    beam: Beam = 32,
    seed: Seed = 0,
    slo: Slo = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    as_json: Json = False,
) -> None:
    """Cold, warm, the knee, its levels, then everything at once: searches with histories and
    filters, clicks, look-ups, catalogue changes, swaps (of a server of its own)."""
    scale = minutes * 60 / RUN_S
    phases = mixed_phases(scale, swaps=url is None, changes=changes)
    plan = _plan(phases, beam, seed, scale)
    _run(plan, demo, url, dataset, queries, slo, out, as_json)


@app.command("knee")
def knee(
    demo: Demo = DEFAULT_DEMO,
    url: Url = None,
    dataset: Dataset = None,
    queries: Queries = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="All together, about.")] = 3.0,
    beam: Beam = 32,
    seed: Seed = 0,
    slo: Slo = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    as_json: Json = False,
) -> None:
    """Only the knee, and latencies at its levels."""
    scale = minutes / 3
    plan = _plan(knee_phases(scale), beam, seed, scale / 2)
    _run(plan, demo, url, dataset, queries, slo, out, as_json)


@app.command("soak")
def soak(
    demo: Demo = DEFAULT_DEMO,
    url: Url = None,
    dataset: Dataset = None,
    queries: Queries = None,
    hours: Annotated[float, typer.Option(min=0.001, help="How long.")] = 2.0,
    rate: Annotated[float, typer.Option(min=0.1, help="Searches per second.")] = 20.0,
    changes: Annotated[
        bool, typer.Option("--changes/--no-changes", help="Change the catalogue meanwhile.")
    ] = True,
    beam: Beam = 32,
    seed: Seed = 0,
    slo: Slo = DEFAULT_FILE,
    out: Out = Path("var/soak"),
    as_json: Json = False,
) -> None:
    """An even load for hours: does memory grow, do latencies?"""
    phases = soak_phases(hours * 3600, rate, changes=changes)
    plan = Plan("", phases, beam_width=beam, seed=seed)
    _run(plan, demo, url, dataset, queries, slo, out, as_json)


@app.command("compare")
def compare(
    base: Annotated[Path, typer.Argument(help="Folder of a run.")],
    new: Annotated[Path, typer.Argument(help="Folder of another.")],
    slower: Annotated[
        float, typer.Option(min=1.0, help="Ratio that a whole interval has to be above.")
    ] = 1.1,
    out: Annotated[Path | None, typer.Option(help="Also write compare.md and .html here.")] = None,
    as_json: Json = False,
) -> None:
    """Two runs beside each other; status 1 when something is clearly slower."""
    from loadtest.compare import compare as differences_of
    from loadtest.report import as_html, as_markdown, comparison
    from loadtest.results import Run

    found = differences_of(Run.read(base), Run.read(new))
    if not found:
        raise ConfigError(f"{base} and {new} have no phase in common")
    sections = comparison(found, slower)
    title = f"{new.name} beside {base.name}"
    if out is not None:
        _make_folder(out)
        (out / "compare.md").write_text(as_markdown(title, sections), encoding="utf-8")
        (out / "compare.html").write_text(as_html(title, sections), encoding="utf-8")
    if as_json:
        typer.echo(orjson.dumps([one.as_json(slower) for one in found]).decode())
    else:
        typer.echo(as_markdown(title, sections))
    if any(one.verdict(slower) == "slower" for one in found):
        raise typer.Exit(EXIT_BROKEN)


@app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    slo: Slo = DEFAULT_FILE,
    as_json: Json = False,
) -> None:
    """Check a run again, with other objectives, and write its report anew."""
    from loadtest.results import REPORT, Run

    known = folder / REPORT
    told = orjson.loads(known.read_bytes()) if known.exists() else {}
    _finish(Run.read(folder), folder, slo, as_json, told.get("machine"), told.get("command"))


def _plan(phases: tuple[Phase, ...], beam: int, seed: int, scale: float) -> Plan:
    search = KneeSearch(step_s=max(MIN_STEP_S, KneeSearch().step_s * scale))
    return Plan("", phases, search, knee_after="warm", beam_width=beam, seed=seed)


def _run(
    plan: Plan,
    demo: Path,
    url: str | None,
    dataset: Path | None,
    queries: Path | None,
    slo: Path,
    out: Path,
    as_json: bool,
) -> None:
    from loadtest.bench.machine import describe_machine
    from loadtest.results import Run
    from loadtest.slo import read_objectives
    from loadtest.trial import named_server, own_server, run_plan
    from loadtest.workload import Workload

    if find_spec("locust") is None:
        raise ConfigError("locust is not installed: pip install 'onesearch[loadtest]'")
    # What is wrong with the input is told before minutes are spent.
    read_objectives(slo)
    _make_folder(out)
    asked = queries if queries is not None else dataset or demo / "dataset"
    (Workload.of_log if queries is not None else Workload.of_dataset)(asked)
    plan = replace(
        plan, dataset="" if queries else str(asked), queries=str(asked) if queries else ""
    )
    errors = Console(stderr=True, highlight=False)
    machine = describe_machine()
    if machine["busy"]:
        share = machine["load_before"]["busy_share"]
        errors.print(f"warning: the machine is {share:.0%} busy; do not trust these timings")
    with ExitStack() as stack:
        target = named_server(url) if url is not None else stack.enter_context(own_server(demo))
        run_plan(plan, target, out, lambda facts: errors.print(_line(facts), markup=False))
    command = shlex.join(["onesearch", *sys.argv[1:]])
    _finish(Run.read(out), out, slo, as_json, machine, command, errors)


def _finish(
    found: Any,
    out: Path,
    slo: Path,
    as_json: bool,
    machine: dict[str, Any] | None,
    command: str | None,
    errors: Console | None = None,
) -> None:
    """Write the report; status 1 when an objective is broken."""
    from loadtest.bench.machine import describe_machine
    from loadtest.report import write_report
    from loadtest.results import REPORT, summary
    from loadtest.slo import check, read_objectives

    errors = errors or Console(stderr=True, highlight=False)
    figures = summary(found)
    checks = check(read_objectives(slo), figures)
    command = command or shlex.join(["onesearch", *sys.argv[1:]])
    files = write_report(found, figures, checks, machine or describe_machine(), command, out)
    for file in files:
        errors.print(f"wrote {file}", markup=False)
    broken = [one for one in checks if not one.held]
    for one in broken:
        errors.print(f"broken: {one.what}: {one.found} (bound {one.bound:g})", markup=False)
    if as_json:
        typer.echo((out / REPORT).read_text(encoding="utf-8"), nl=False)
    else:
        typer.echo((out / "report.md").read_text(encoding="utf-8"))
    if broken:
        raise typer.Exit(EXIT_BROKEN)


def _make_folder(folder: Path) -> None:
    """Raises ConfigError where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".probe").write_bytes(b"")
        (folder / ".probe").unlink()
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror}") from None


def _line(facts: dict[str, Any]) -> str:
    if "phase" in facts:
        seconds = facts["ended"] - facts["began"]
        return f"{facts['phase']}: {facts['rate']:.0f} searches/s for {seconds:.0f} s"
    if "knee" in facts:
        return f"knee: {facts['knee']:.0f} searches/s"
    return f"swap: {facts['is']} after {(facts['ended'] - facts['began']) * 1000:.0f} ms"
