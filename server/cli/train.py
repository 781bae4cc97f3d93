"""`onesearch train`: train decoders, stage by stage."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import orjson
import typer

app = typer.Typer(no_args_is_help=True, help="Train decoders.")


@app.callback()
def train() -> None:
    """Train decoders."""


@app.command("sft")
def sft(
    dataset: Annotated[Path, typer.Argument(help="Dataset directory.")],
    snapshot: Annotated[Path, typer.Argument(help="Snapshot built from it.")],
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint directory to write.")],
    init: Annotated[
        Path | None,
        typer.Option(help="Start from this checkpoint, or any local Qwen3 directory."),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0.05, help="Time budget; training ends when it or --examples is reached."),
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Examples seen in all, repeats included.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Decoder layers.")] = None,
    hidden_size: Annotated[int | None, typer.Option(min=16, help="Width of the decoder.")] = None,
    batch_examples: Annotated[int | None, typer.Option(min=1)] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Batches per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=1e-7)] = None,
    prior_beta: Annotated[
        float | None, typer.Option(min=0, help="Codebook prior; 0 for none.")
    ] = None,
    save_every_s: Annotated[
        float | None, typer.Option(min=0, help="Seconds between saves of the training state.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto (a CUDA device if there is one), cpu, cuda or cuda:N.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 7,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace CHECKPOINT.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Supervised fine-tuning, stages 1 to 3. A killed run continues where it stood."""
    from index.dataset import Dataset
    from index.snapshot import Snapshot
    from models.training.metrics_log import MetricsLog
    from models.training.run_sft import SftRun, run_sft
    from models.training.sft import SftSettings
    from server.cli.progress import TrainingProgress, chosen_device

    chosen = {
        "device": chosen_device(device),
        "max_minutes": max_minutes,
        "examples": examples,
        "layers": layers,
        "hidden_size": hidden_size,
        "batch_examples": batch_examples,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "prior_beta": prior_beta,
        "save_every_s": save_every_s,
        "seed": seed,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    run = SftRun(
        Dataset.open(dataset),
        Snapshot.open(snapshot),
        checkpoint,
        init=init,
        settings=replace(SftSettings(), **given),
        overwrite=overwrite,
    )
    with ExitStack() as stack:
        progress = stack.enter_context(TrainingProgress())
        log = stack.enter_context(MetricsLog(checkpoint.parent / f"{checkpoint.name}.log"))

        def report(step: object) -> None:
            progress.show(step)  # pyright: ignore[reportArgumentType]
            log.write(step)  # pyright: ignore[reportArgumentType]

        saved = run_sft(run, report, progress.announce)
    facts = {"checkpoint": str(saved.path), "version": saved.version, **saved.metrics}
    if as_json:
        typer.echo(orjson.dumps(facts).decode())
    else:
        typer.echo(f"checkpoint {saved.path}, version {saved.version}")
        for name, value in saved.metrics.items():
            typer.echo(f"  {name}: {value}")
