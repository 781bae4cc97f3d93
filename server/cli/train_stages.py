"""`onesearch train distill`, `align`, `keywords`: what follows fine-tuning, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.training.loop import Progress

DatasetDirectory = Annotated[Path, typer.Argument(help="Dataset directory.")]
SnapshotDirectory = Annotated[Path, typer.Argument(help="Snapshot built from it.")]
Target = Annotated[Path, typer.Argument(help="Checkpoint directory to write.")]
Init = Annotated[Path, typer.Option(help="Checkpoint of `onesearch train` to start from.")]
KeywordFile = Annotated[
    Path | None,
    typer.Option(
        help="File of `onesearch keywords export` or `onesearch train keywords`; needed unless "
        "--kl-weight is 0."
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(min=0.05, help="Time budget; training ends when it or --examples is reached."),
]
BatchExamples = Annotated[int | None, typer.Option(min=1, help="Examples (searches) a step.")]
LearningRate = Annotated[float | None, typer.Option(min=1e-7, help="The peak.")]
SaveEvery = Annotated[
    float | None, typer.Option(min=0, help="Seconds between saves of the training state.")
]
Device = Annotated[
    str, typer.Option(help="auto (a CUDA device if there is one), cpu, cuda or cuda:N.")
]
Recompute = Annotated[
    bool,
    typer.Option("--recompute", help="Gradient checkpointing: less memory, a third more work."),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace CHECKPOINT.")]
Report = Callable[["Progress"], None]
Announce = Callable[[str], None]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


class Method(StrEnum):
    """Advantages of alignment."""

    TPMA = "tpma"
    GRPO = "grpo"


def distill(
    dataset: DatasetDirectory,
    snapshot: SnapshotDirectory,
    checkpoint: Target,
    init: Init,
    keywords: KeywordFile = None,
    kl_weight: Annotated[
        float | None, typer.Option(min=0, help="α of the teacher's term; 0: off.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="τ.")] = None,
    ema_decay: Annotated[
        float | None, typer.Option(min=0, max=0.9999, help="Of a moving-average teacher; 0: off.")
    ] = None,
    r_drop: Annotated[float | None, typer.Option(min=0, help="α of R-Drop; 0: off.")] = None,
    dropout: Annotated[float | None, typer.Option(min=0, max=0.9)] = None,
    fgm: Annotated[
        float | None, typer.Option(min=0, help="ε of the adversarial pass; 0: off.")
    ] = None,
    focal: Annotated[bool | None, typer.Option("--focal/--no-focal")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Examples seen in all.")] = None,
    max_minutes: Minutes = None,
    batch_examples: BatchExamples = None,
    learning_rate: LearningRate = None,
    save_every_s: SaveEvery = None,
    recompute: Recompute = False,
    device: Device = "auto",
    seed: Seed = 7,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Self-distillation: without keywords as good as with them. Continues where it was killed."""
    from index.dataset import Dataset
    from index.snapshot import Snapshot
    from models.training.distill import DistillSettings
    from models.training.keyword_table import read_keywords
    from models.training.run_distill import DistillRun, run_distill

    given = chosen(
        kl_weight=kl_weight,
        temperature=temperature,
        ema_decay=ema_decay,
        r_drop_weight=r_drop,
        dropout=dropout,
        adversarial_epsilon=fgm,
        focal=focal,
        examples=examples,
        max_minutes=max_minutes,
        batch_examples=batch_examples,
        learning_rate=learning_rate,
        save_every_s=save_every_s,
        recompute=recompute,
        seed=seed,
    )
    start = partial(
        DistillRun,
        Dataset.open(dataset),
        Snapshot.open(snapshot),
        checkpoint,
        init,
        read_keywords(keywords) if keywords is not None else None,
        overwrite=overwrite,
    )
    settings = DistillSettings(**given)

    def work(device: str, report: Report, announce: Announce) -> Checkpoint:
        return run_distill(start(settings=replace(settings, device=device)), report, announce)

    show(checkpoint, device, as_json, work)


def align(
    dataset: DatasetDirectory,
    snapshot: SnapshotDirectory,
    checkpoint: Target,
    init: Init,
    method: Annotated[Method, typer.Option(help="Advantages.")] = Method.TPMA,
    strict_prefix: Annotated[
        bool, typer.Option("--strict-prefix", help="Nothing counts behind a mismatch.")
    ] = False,
    item_weight: Annotated[
        float | None, typer.Option(min=0, help="Weight of the item's reward in TPMA.")
    ] = None,
    anchor_weight: Annotated[
        float | None, typer.Option(min=0, help="Weight of cross-entropy; 0: off.")
    ] = None,
    reference_weight: Annotated[
        float | None, typer.Option(min=0, help="β of the KL to the initial model; 0: off.")
    ] = None,
    group: Annotated[int | None, typer.Option(min=2, help="Rollouts of each search.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="Of the rollouts.")] = None,
    updates: Annotated[int | None, typer.Option(min=1, help="Of each group of rollouts.")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Searches seen in all.")] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(min=0, help="Steps between measurements of the valid rate.")
    ] = None,
    max_minutes: Minutes = None,
    batch_examples: BatchExamples = None,
    learning_rate: LearningRate = None,
    save_every_s: SaveEvery = None,
    recompute: Recompute = False,
    device: Device = "auto",
    seed: Seed = 7,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Preference alignment from clicks and orders. Continues where it was killed."""
    from index.dataset import Dataset
    from index.snapshot import Snapshot
    from models.training.align import AlignSettings
    from models.training.run_align import AlignRun, run_align

    given = chosen(
        method=str(method),
        strict_prefix=strict_prefix,
        item_weight=item_weight,
        anchor_weight=anchor_weight,
        reference_weight=reference_weight,
        group=group,
        temperature=temperature,
        updates=updates,
        examples=examples,
        evaluate_every=evaluate_every,
        max_minutes=max_minutes,
        batch_examples=batch_examples,
        learning_rate=learning_rate,
        save_every_s=save_every_s,
        recompute=recompute,
        seed=seed,
    )
    start = partial(
        AlignRun,
        Dataset.open(dataset),
        Snapshot.open(snapshot),
        checkpoint,
        init,
        overwrite=overwrite,
    )
    settings = AlignSettings(**given)

    def work(device: str, report: Report, announce: Announce) -> Checkpoint:
        return run_align(start(settings=replace(settings, device=device)), report, announce)

    show(checkpoint, device, as_json, work)


def keywords(
    dataset: DatasetDirectory,
    snapshot: SnapshotDirectory,
    file: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    pseudo_queries: Annotated[
        int | None, typer.Option(min=0, help="Queries derived from items, beside the real ones.")
    ] = None,
    seed: Seed = 7,
    as_json: AsJson = False,
) -> None:
    """Make keywords of the training queries with the statistical generator, for --keywords."""
    from rich.console import Console

    from index.dataset import Dataset
    from index.snapshot import Snapshot
    from server.keywords.offline import PSEUDO_QUERIES, make_keyword_file

    with Console(stderr=True).status("opening") as status:
        counts = make_keyword_file(
            Dataset.open(dataset),
            Snapshot.open(snapshot),
            file,
            pseudo_queries=PSEUDO_QUERIES if pseudo_queries is None else pseudo_queries,
            seed=seed,
            progress=lambda done, total: status.update(f"{done:,} of {total:,} queries"),
        )
    if as_json:
        typer.echo(orjson.dumps({"file": str(file), **counts}).decode())
    else:
        parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        typer.echo(f"wrote {file}: {parts}")


def chosen(**values: Any) -> dict[str, Any]:
    """Settings that were given on the command line."""
    return {name: value for name, value in values.items() if value is not None}


def show(
    checkpoint: Path,
    device: str,
    as_json: bool,
    work: Callable[[str, Report, Announce], Checkpoint],
) -> None:
    """Run on the device asked for, with progress and a log of metrics beside the checkpoint, then
    print what came out. Of several processes only the first speaks."""
    from models.training.memory import keep_freed_memory
    from models.training.metrics_log import MetricsLog
    from models.training.parallel import joined, this_process
    from server.cli.progress import TrainingProgress, chosen_device

    keep_freed_memory()
    with joined(chosen_device(device)) as own, ExitStack() as stack:
        if not this_process().first:
            work(own, lambda _: None, lambda _: None)
            return
        progress = stack.enter_context(TrainingProgress())
        log = stack.enter_context(MetricsLog(checkpoint.parent / f"{checkpoint.name}.log"))

        def report(step: Progress) -> None:
            progress.show(step)
            log.write(step)

        saved = work(own, report, progress.announce)
    facts = {"checkpoint": str(saved.path), "version": saved.version, **saved.metrics}
    if as_json:
        typer.echo(orjson.dumps(facts).decode())
    else:
        typer.echo(f"checkpoint {saved.path}, version {saved.version}")
        for name, value in saved.metrics.items():
            typer.echo(f"  {name}: {value}")
