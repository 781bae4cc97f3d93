"""`onesearch train ablate`: the method's components, one after the other, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from index.errors import ConfigError

if TYPE_CHECKING:
    from index.dataset import Dataset
    from index.snapshot import Snapshot
    from models.training.keyword_table import KeywordTable, Terms
    from models.training.visits import Visit

DEMO = Path("var/demo")
MEASUREMENTS = Path("docs/measurements")


def ablate(
    dataset: Annotated[
        Path, typer.Argument(help="Dataset whose users searched, clicked and ordered.")
    ] = DEMO / "dataset",
    snapshot: Annotated[Path, typer.Argument(help="Snapshot built from it.")] = DEMO / "snapshot",
    work: Annotated[Path, typer.Argument(help="Directory to work in; runs continue there.")] = Path(
        "var/ablation/demo"
    ),
    recipe: Annotated[str, typer.Option(help="Which components, in which order: v2.")] = "v2",
    seeds: Annotated[int, typer.Option(min=1, help="How often everything is trained.")] = 3,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this row and what it starts from; repeatable.")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Of this call; the next one goes on.")
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report", help="Train nothing: report what is there.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for tables, JSON and plot; default: WORK.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the files.")] = "ablation",
    quick: Annotated[
        bool, typer.Option("--quick", help="A smoke test of minutes; its figures say nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Train each component's row for several seeds and compare them. Continues where it stood."""
    from rich.console import Console

    from index.dataset import Dataset
    from index.snapshot import Snapshot
    from models.training.ablation import Ablation, run_ablation
    from models.training.ablation_measurement import MeasuredVisits
    from models.training.ablation_recipe import recipe_of
    from models.training.ablation_report import build_report
    from models.training.ablation_text import as_markdown, write_report
    from models.training.memory import keep_freed_memory
    from server.cli.progress import TrainingProgress

    chosen = recipe_of(recipe, quick=quick)
    rows = tuple(only or ())
    chosen.rows_named(rows)
    opened, index = Dataset.open(dataset), Snapshot.open(snapshot)
    sizes = chosen.sizes
    visits = MeasuredVisits.read(opened, sizes.validation_visits, sizes.test_visits)
    if not visits.test:
        raise ConfigError(
            f"no test search of {dataset} ended in a click or an order; see `onesearch data "
            "simulate`"
        )
    keywords = _training_keywords(opened, index, work, sizes.pseudo_queries, make=not report_only)
    ablation = Ablation(opened, index, work, chosen, keywords, seeds)
    if not report_only:
        keep_freed_memory()
        with TrainingProgress() as progress:
            run_ablation(
                ablation,
                visits,
                keyword_source(opened, index),
                only=rows,
                max_minutes=max_minutes,
                report=progress.show,
                announce=progress.announce,
            )
    report = build_report(ablation, visits)
    files = write_report(report, name, out or work)
    if as_json:
        facts: dict[str, Any] = {**report, "files": [str(file) for file in files]}
        typer.echo(orjson.dumps(facts).decode())
        return
    typer.echo(as_markdown(report, name))
    console = Console(stderr=True, highlight=False)
    console.print("wrote " + ", ".join(map(str, files)), markup=False)
    if not report["complete"]:
        console.print("rows are missing; the same command goes on", markup=False)


def _training_keywords(
    dataset: Dataset, snapshot: Snapshot, work: Path, pseudo_queries: int, *, make: bool
) -> KeywordTable:
    """The work directory's keyword file, made if it is not there."""
    from models.training.keyword_table import read_keywords
    from server.keywords.offline import make_keyword_file

    path = work / "keywords.parquet"
    if not path.exists():
        if not make:
            raise ConfigError(f"{work} holds no ablation: there is no {path.name} in it")
        make_keyword_file(dataset, snapshot, path, pseudo_queries=pseudo_queries)
    return read_keywords(path)


def keyword_source(
    dataset: Dataset, snapshot: Snapshot
) -> Callable[[Sequence[Visit]], list[Terms]]:
    """Keywords of searches by the statistical generator, as a server would have them: from the
    query and what the user chose before, with co-clicks of the training split only."""
    from server.keywords.associations import Associations, clicks_of
    from server.keywords.keywords import MAX_QUERY_LENGTH, MAX_RECENT, MAX_TEXT_LENGTH
    from server.keywords.keywords import KeywordRequest as Request
    from server.keywords.offline import BATCH
    from server.keywords.statistical import StatisticalGenerator
    from server.keywords.vocabulary import Vocabulary

    titles = snapshot.items.table.column("title")
    made: list[StatisticalGenerator] = []

    def request_of(visit: Visit) -> Request:
        chosen = [str(titles[row]) for row in visit.history[-MAX_RECENT:]]
        return Request(
            visit.query[:MAX_QUERY_LENGTH],
            visit.user if chosen else None,
            clicked_titles=tuple(title[:MAX_TEXT_LENGTH] for title in chosen),
        )

    def keywords_of(visits: Sequence[Visit]) -> list[Terms]:
        if not made:  # Seconds, and only some rows need it.
            vocabulary = Vocabulary.build(snapshot)
            clicks = clicks_of(dataset, snapshot.items)
            associations = Associations.build(clicks, vocabulary, version=dataset.version)
            made.append(StatisticalGenerator(snapshot, associations, vocabulary=vocabulary))
        found: list[Terms] = []
        for start in range(0, len(visits), BATCH):
            requests = [request_of(visit) for visit in visits[start : start + BATCH]]
            found += [tuple(one.terms) for one in made[0].generate_batch(requests)]
        return found

    return keywords_of
