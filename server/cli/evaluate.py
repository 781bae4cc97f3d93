"""`onesearch evaluate`: the served ranking beside BM25, dense, hybrid and no decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from index.errors import ConfigError
from server.settings import DEFAULT_BEAM_WIDTH


def evaluate(
    snapshot: Annotated[Path, typer.Argument(help="Snapshot directory.")],
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint trained for it.")],
    judgments: Annotated[
        Path | None, typer.Option(help="CSV or Parquet with query, item_id, grade.")
    ] = None,
    relevant_from: Annotated[
        float | None, typer.Option(help="With --judgments: grade from which an item is relevant.")
    ] = None,
    visits: Annotated[
        Path | None,
        typer.Option(help="Instead of judgments: a dataset, whose users' test searches count."),
    ] = None,
    max_visits: Annotated[int, typer.Option(min=1, help="With --visits: sample at most.")] = 4000,
    split: Annotated[
        str, typer.Option(help="With --visits: test; or train, for what was learnt by heart.")
    ] = "test",
    methods: Annotated[
        str, typer.Option(help="Comma-separated; hybrid_rescored may be added.")
    ] = "generative,generative_only,codec_only,bm25,dense,hybrid",
    beam: Annotated[int, typer.Option(min=1, max=4096, help="Beam width.")] = DEFAULT_BEAM_WIDTH,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Each method's figures with 95 % intervals: on judgments, or on searches of users who have a
    history (--visits)."""
    if visits is not None:
        if judgments is not None or relevant_from is not None:
            raise ConfigError("--visits needs no --judgments and no --relevant-from")
        from server.cli.visits_report import evaluate_visits_command

        evaluate_visits_command(
            visits,
            snapshot,
            checkpoint,
            beam,
            max_visits=max_visits,
            split=split,
            as_json=as_json,
        )
        return
    if judgments is None or relevant_from is None:
        raise ConfigError("give --judgments and --relevant-from, or --visits with a dataset")
    from models.training.judgments_file import read_judgments
    from models.training.run_evaluate import run_evaluate

    console = Console(stderr=True)
    with console.status("opening") as status:

        def show(what: str, done: int, total: int) -> None:
            status.update(f"{what}: {done}/{total}")

        report = run_evaluate(
            snapshot,
            checkpoint,
            lambda opened: read_judgments(judgments, relevant_from, opened.items),
            [name.strip() for name in methods.split(",") if name.strip()],
            beam,
            progress=show,
        )
    if as_json:
        typer.echo(orjson.dumps(report).decode())
    else:
        _print_report(report)


def _print_report(report: dict[str, Any]) -> None:
    notes = ", simulated behaviour" if report.get("simulated") else ""
    title = f"{report['queries']} queries, beam {report['beam_width']}{notes}"
    names = ("recall@10", "recall@50", "hr@10", "mrr@10")
    table = Table("method", *names, "candidates", "legal", "p50 ms", "p99 ms", title=title)
    for method, row in report["methods"].items():
        low, high = row["ci95"]["recall@10"]
        cells = [f"{row['recall@10']:.3f} [{low:.3f}, {high:.3f}]"]
        cells += [f"{row[name]:.3f}" for name in names[1:]]
        legal = f"{row['legal_rate']:.4f}" if "legal_rate" in row else "–"
        latency = row["latency_ms"]
        table.add_row(
            method,
            *cells,
            f"{row['candidates']:.0f}",
            legal,
            f"{latency['p50']:.1f}",
            f"{latency['p99']:.1f}",
        )
    console = Console(highlight=False, width=130)
    console.print(table)
    for pair, row in report["differences"].items():
        low, high = row["ci95"]["recall@10"]
        console.print(f"{pair}: recall@10 {row['recall@10']:+.3f} [{low:+.3f}, {high:+.3f}]")
    if "unconstrained_valid_rate" in report:
        console.print(
            f"valid SIDs without the trie: {report['unconstrained_valid_rate']:.1%} of a free beam"
        )
    for note in report.get("notes", []):
        console.print(f"note: {note}", markup=False)
