"""One self-distillation run from artifacts to artifact: dataset + snapshot + checkpoint + keywords
→ checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from index.dataset import Dataset
from index.errors import ConfigError
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.prompt import PromptBuilder
from models.training import distill, loop, state
from models.training.distill import DistillSettings
from models.training.keyword_table import KeywordTable
from models.training.material import read_material
from models.training.publishing import (
    check_belongs,
    factors_of,
    initial_model,
    open_initial,
    publish,
)
from models.training.run_sft import curriculum_of, silent


@dataclass(frozen=True, slots=True)
class DistillRun:
    """What to train from and to. The prior and the prompt's limits are those of `init`. Only the
    teacher's term needs `keywords`."""

    dataset: Dataset
    snapshot: Snapshot
    checkpoint: Path
    init: Path
    keywords: KeywordTable | None = None
    settings: DistillSettings = field(default_factory=DistillSettings)
    overwrite: bool = False


def run_distill(
    run: DistillRun,
    report: Callable[[loop.Progress], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Train and publish. Raises ArtifactError when the parts do not belong together."""
    say = announce or silent
    dataset, snapshot = run.dataset, run.snapshot
    check_belongs(dataset, snapshot, run.checkpoint, overwrite=run.overwrite)
    initial = open_initial(run.init, snapshot)
    if not initial.settings.prompt.max_keyword_tokens:
        raise ConfigError(f"checkpoint {run.init} leaves no room for keywords in its prompts")
    settings = replace(run.settings, prior_beta=initial.settings.level_prior_beta)
    say("reading training material")
    material = read_material(dataset)
    model, tokenizer = initial_model(initial), initial.tokenizer
    curriculum = curriculum_of(
        snapshot,
        material,
        PromptBuilder(tokenizer, initial.settings.prompt),
        run.keywords,
        mixture=settings.mixture,
        chunk_examples=settings.chunk_examples,
        seed=settings.seed,
    )
    state_directory = state.state_path(run.checkpoint)
    parents = (dataset.version, snapshot.version, initial.version)
    keywords = run.keywords.version if run.keywords is not None else None
    say("training")
    result = distill.train(
        model,
        curriculum,
        tokenizer,
        snapshot.codec,
        settings,
        state_directory=state_directory,
        fingerprint=loop.fingerprint(settings, *parents, keywords or ""),
        report=report,
    )
    say("fitting rescoring weights")
    own = settings.components | {"keywords": keywords}
    return publish(
        run.checkpoint,
        model,
        tokenizer,
        replace(
            initial.settings,
            snapshot_version=snapshot.version,
            stage="distill",
            simulated=initial.settings.simulated or dataset.simulated,
            parents=parents,
            components={**initial.settings.components, "distill": own},
        ),
        dataset,
        snapshot,
        result.metrics(),
        overwrite=run.overwrite,
        seed=settings.seed,
        earlier_factors=factors_of(initial),
    )
