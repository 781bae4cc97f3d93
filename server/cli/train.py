"""`onesearch train`: train decoders, stage by stage."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.errors import ConfigError
from server.cli import train_stages as stages
from server.cli.ablate import ablate
from server.cli.train_stages import (
    Announce,
    AsJson,
    DatasetDirectory,
    Device,
    Minutes,
    Overwrite,
    Recompute,
    Report,
    SaveEvery,
    Seed,
    SnapshotDirectory,
    Target,
    chosen,
    show,
)

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint

app = typer.Typer(no_args_is_help=True, help="Train decoders.")


@app.callback()
def train() -> None:
    """Train decoders."""


@app.command("sft")
def sft(
    dataset: DatasetDirectory,
    snapshot: SnapshotDirectory,
    checkpoint: Target,
    init: Annotated[
        Path | None,
        typer.Option(help="Start from this checkpoint, or any local Qwen3 directory."),
    ] = None,
    keywords: Annotated[
        Path | None,
        typer.Option(
            help="File of `onesearch keywords export` or `onesearch train keywords`: switches on "
            "the keyword tasks and prompts with keywords."
        ),
    ] = None,
    thoughts: Annotated[
        str | None,
        typer.Option(help="Keyword tasks of stage 1, with commas, or 'none'; all by default."),
    ] = None,
    keyword_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of search prompts that show their keywords."),
    ] = None,
    max_minutes: Minutes = None,
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
    user_sid: Annotated[
        bool, typer.Option("--user-sid", help="Prompts with a history begin with user SIDs.")
    ] = False,
    next_item_share: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Of stage 3: users' sequences without a query."),
    ] = None,
    pseudo_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Pseudo-queries; the rest asks what people asked."),
    ] = None,
    history_dropout: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of users' searches: shown without history.")
    ] = None,
    max_history: Annotated[
        int | None, typer.Option(min=0, max=50, help="Items of a history in the prompt; 0: none.")
    ] = None,
    save_every_s: SaveEvery = None,
    recompute: Recompute = False,
    device: Device = "auto",
    seed: Seed = 7,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Supervised fine-tuning, stages 1 to 3. A killed run continues where it stood."""
    from index.dataset import Dataset
    from index.snapshot import Snapshot
    from models.training.keyword_table import read_keywords
    from models.training.run_sft import SERVING_PROMPT, SftRun, run_sft
    from models.training.sft import SftSettings

    if keywords is None and (thoughts is not None or keyword_share is not None):
        raise ConfigError("--thoughts and --keyword-share need --keywords FILE")
    tasks = None
    if thoughts is not None:
        tasks = () if thoughts == "none" else tuple(thoughts.split(","))
    given = chosen(
        max_minutes=max_minutes,
        examples=examples,
        layers=layers,
        hidden_size=hidden_size,
        batch_examples=batch_examples,
        accumulate=accumulate,
        learning_rate=learning_rate,
        prior_beta=prior_beta,
        save_every_s=save_every_s,
        recompute=recompute,
        seed=seed,
    )
    settings = SftSettings(**given)
    shares = chosen(
        keyword_share=keyword_share,
        next_item_share=next_item_share,
        pseudo_share=pseudo_share,
        history_dropout=history_dropout,
    )
    mixture = replace(settings.mixture, **chosen(thought_tasks=tasks), **shares)
    start = partial(
        SftRun,
        Dataset.open(dataset),
        Snapshot.open(snapshot),
        checkpoint,
        init=init,
        keywords=read_keywords(keywords) if keywords is not None else None,
        prompt=replace(SERVING_PROMPT, user_sid=user_sid, **chosen(max_history=max_history)),
        overwrite=overwrite,
    )

    def work(device: str, report: Report, announce: Announce) -> Checkpoint:
        chosen_settings = replace(settings, mixture=mixture, device=device)
        return run_sft(start(settings=chosen_settings), report, announce)

    show(checkpoint, device, as_json, work)


app.command("distill")(stages.distill)
app.command("align")(stages.align)
app.command("keywords")(stages.keywords)
app.command("ablate")(ablate)
