"""One alignment run from artifacts to artifact: dataset + snapshot + checkpoint → checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from index.dataset import Dataset
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.query import QueryPrompts
from models.training import align, loop, state
from models.training.align import AlignSettings
from models.training.episodes import Episodes
from models.training.publishing import (
    VALID_RATE_QUERIES,
    check_belongs,
    factors_of,
    initial_model,
    open_initial,
    publish,
)
from models.training.relevance import relevant_rows
from models.training.run_sft import silent


@dataclass(frozen=True, slots=True)
class AlignRun:
    """What to train from and to. The prior and the prompt's limits are those of `init`."""

    dataset: Dataset
    snapshot: Snapshot
    checkpoint: Path
    init: Path
    settings: AlignSettings = field(default_factory=AlignSettings)
    overwrite: bool = False


def run_align(
    run: AlignRun,
    report: Callable[[loop.Progress], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Train and publish. Raises ArtifactError when the parts do not belong together."""
    say = announce or silent
    dataset, snapshot = run.dataset, run.snapshot
    check_belongs(dataset, snapshot, run.checkpoint, overwrite=run.overwrite)
    initial = open_initial(run.init, snapshot)
    settings = replace(run.settings, prior_beta=initial.settings.level_prior_beta)
    say("reading training material")
    prompts = QueryPrompts.of(snapshot.codec, initial)
    episodes = Episodes.read(dataset, snapshot, prompts)
    held_out = sorted(relevant_rows(dataset, "validation"))[:VALID_RATE_QUERIES]
    embedded = snapshot.embed_queries(held_out)
    model, tokenizer = initial_model(initial), initial.tokenizer
    state_directory = state.state_path(run.checkpoint)
    parents = (dataset.version, snapshot.version, initial.version)
    say("training")
    result = align.train(
        model,
        episodes,
        tokenizer,
        snapshot,
        settings,
        state_directory=state_directory,
        fingerprint=loop.fingerprint(settings, *parents),
        held_out=prompts.prompts(held_out, embedded, [()] * len(held_out)) if held_out else (),
        report=report,
    )
    say("fitting rescoring weights")
    return publish(
        run.checkpoint,
        model,
        tokenizer,
        replace(
            initial.settings,
            snapshot_version=snapshot.version,
            stage="align",
            simulated=initial.settings.simulated or dataset.simulated,
            parents=parents,
            components={**initial.settings.components, "align": settings.components},
        ),
        dataset,
        snapshot,
        result.metrics() | {"episodes": len(episodes)},
        overwrite=run.overwrite,
        seed=settings.seed,
        earlier_factors=factors_of(initial),
    )
