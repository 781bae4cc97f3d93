"""`onesearch evaluate --visits`: personalised search on searches of users, as tables or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

WIDTH = 130


def evaluate_visits_command(
    dataset: Path,
    snapshot: Path,
    checkpoint: Path,
    beam: int,
    *,
    max_visits: int,
    split: str,
    as_json: bool,
) -> None:
    """Measure and print."""
    from models.training.run_personal import run_personal

    with Console(stderr=True).status("opening") as status:

        def show(what: str, done: int, total: int) -> None:
            status.update(f"{what}: {done}/{total}")

        report = run_personal(
            dataset,
            snapshot,
            checkpoint,
            beam,
            max_visits=max_visits,
            split=split,
            progress=show,
        )
    if as_json:
        typer.echo(orjson.dumps(report).decode())
        return
    console = Console(highlight=False, width=WIDTH)
    for target, found in report["targets"].items():
        console.print(_methods(report, target, found))
        for pair, row in found["differences"].items():
            console.print(f"  {pair}: {_change(row)}")
        console.print(_slices(target, found))
    if "next_item" in report:
        console.print(_next_item(report["next_item"]))


def _methods(report: dict[str, Any], target: str, found: dict[str, Any]) -> Table:
    facts = [f"{found['visits']} searches with a {target}", f"beam {report['beam_width']}"]
    if report["split"] != "test":
        facts.append(f"split {report['split']}")
    if report["simulated"]:
        facts.append("simulated behaviour")
    if report["queries_derived"]:
        facts.append("derived queries")
    table = Table("method", "hr@10", "95 %", "ndcg@10", "mrr@10", title=", ".join(facts))
    for name, row in found["methods"].items():
        low, high = row["ci95"]["hr@10"]
        cells = (f"{row['hr@10']:.3f}", f"{low:.3f} – {high:.3f}")
        table.add_row(name, *cells, f"{row['ndcg@10']:.3f}", f"{row['mrr@10']:.3f}")
    return table


def _slices(target: str, found: dict[str, Any]) -> Table:
    slices: dict[str, dict[str, Any]] = found["slices"]
    names = list(next(iter(slices.values()))["methods"]) if slices else []
    pairs = list(next(iter(slices.values()))["differences"]) if slices else []
    table = Table("slice", "searches", *names, *pairs, title=f"hr@10 by slice, {target}")
    for name, row in slices.items():
        figures = [f"{row['methods'][method]['hr@10']:.3f}" for method in names]
        changes = [_change(row["differences"][pair], "hr@10") for pair in pairs]
        table.add_row(name, str(row["visits"]), *figures, *changes)
    return table


def _next_item(found: dict[str, Any]) -> Table:
    title = f"next item without a query, {found['cases']} choices of {found['users']} users"
    table = Table("method", "hr@10", "95 %", "ndcg@10", title=title)
    for name, row in found["methods"].items():
        low, high = row["ci95"]["hr@10"]
        cells = (f"{row['hr@10']:.3f}", f"{low:.3f} – {high:.3f}", f"{row['ndcg@10']:.3f}")
        table.add_row(name, *cells)
    return table


def _change(row: dict[str, Any], *metrics: str) -> str:
    parts: list[str] = []
    for metric in metrics or ("hr@10", "ndcg@10"):
        low, high = row["ci95"][metric]
        label = "" if metrics else f"{metric} "
        parts.append(f"{label}{row[metric]:+.3f} [{low:+.3f}, {high:+.3f}]")
    return ", ".join(parts)
