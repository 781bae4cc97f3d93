"""`onesearch keywords evaluate`: Recall@50 of BM25 and dense search without and with keywords."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table


def evaluate(
    snapshot: Annotated[Path, typer.Argument(help="Snapshot directory.")],
    relevant_from: Annotated[float, typer.Option(help="Grade from which an item is relevant.")],
    judgments: Annotated[
        Path | None,
        typer.Option(help="CSV or Parquet with query, item_id, grade; else the dataset's."),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(help="Co-clicks come from its training queries; test queries judge."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """What the statistical keywords are worth: baselines with and without them, with intervals."""
    from server.keywords.evaluate import run_evaluate

    with Console(stderr=True).status("opening") as status:

        def show(what: str, done: int, total: int) -> None:
            status.update(f"{what}: {done}/{total}")

        report = run_evaluate(snapshot, judgments, relevant_from, dataset, progress=show)
    if as_json:
        typer.echo(orjson.dumps(report).decode())
    else:
        _print_report(report)


def _print_report(report: dict[str, Any]) -> None:
    console = Console(highlight=False, width=130)
    simulated = ", simulated behaviour" if report["simulated"] else ""
    for baseline, groups in report["baselines"].items():
        title = f"{baseline}, {report['metric']}{simulated}"
        table = Table("queries", "number", "plain", "appended", "weighted", "used", title=title)
        for group, row in groups.items():
            cells = [
                f"{row[method]['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
                for method in ("appended", "weighted", "used")
                for low, high in [row[method]["ci95"]]
            ]
            table.add_row(group, str(row["queries"]), f"{row['plain']['recall']:.3f}", *cells)
        console.print(table)
    console.print(
        f"{report['keywords_per_s']:,.0f} keywords a second; vocabulary: "
        f"{report['vocabulary_s']:.1f} s, arrays of {report['vocabulary_bytes'] / 1e6:.1f} MB"
    )
    for note in report["notes"]:
        console.print(f"note: {note}", markup=False)
