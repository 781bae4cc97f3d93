"""The training of a round: stage after stage from the champion's checkpoint.

Each stage is a run of `models.training` in the round's folder: it saves its state, and when it was
cut off it goes on there. A stage whose checkpoint lies there already is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from index.dataset import Dataset
from index.errors import ConfigError
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.training.align import AlignSettings
from models.training.curriculum import Mixture
from models.training.distill import DistillSettings
from models.training.keyword_table import KeywordTable
from models.training.loop import Progress
from models.training.run_align import AlignRun, run_align
from models.training.run_distill import DistillRun, run_distill
from models.training.run_sft import SftRun, run_sft
from models.training.sft import SftSettings
from server.sidecar.settings import SidecarSettings

CHUNK_EXAMPLES = 4_096
SEARCH_ONLY = (0.0, 0.0, 1.0)
"""Shares of the curriculum's stages: what SIDs mean was learnt by the champion."""
Report = Callable[[str, Progress], None]


def train(
    directory: Path,
    dataset: Dataset,
    snapshot: Snapshot,
    champion: Path,
    keywords: KeywordTable | None,
    settings: SidecarSettings,
    report: Report,
) -> Checkpoint:
    """The challenger. `report` may raise to stop. Raises ConfigError for a distillation without
    keywords."""
    before = champion
    for stage in settings.stages:
        target = directory / stage
        if not target.exists():
            _run(stage, target, dataset, snapshot, before, keywords, settings, report)
        before = target
    return Checkpoint.open(before)


def _run(
    stage: str,
    target: Path,
    dataset: Dataset,
    snapshot: Snapshot,
    before: Path,
    keywords: KeywordTable | None,
    settings: SidecarSettings,
    report: Report,
) -> None:
    def told(progress: Progress) -> None:
        report(stage, progress)

    its = {"sft": settings.sft, "distill": settings.distill, "align": settings.align}[stage]
    shared: dict[str, Any] = asdict(its) | {
        "prior_beta": Checkpoint.open(before).settings.level_prior_beta,
        "save_every_s": settings.save_every_s,
        "device": settings.device,
        "seed": settings.seed,
    }
    chunk = max(its.batch_examples, min(CHUNK_EXAMPLES, its.examples))
    match stage:
        case "sft":
            mixture = Mixture(stage_shares=SEARCH_ONLY)
            own = SftSettings(**shared, chunk_examples=chunk, mixture=mixture)
            run_sft(SftRun(dataset, snapshot, target, before, keywords, own), told)
        case "distill":
            if keywords is None:
                raise ConfigError(
                    "distill needs keywords, and none were made; see docs/keywords.md"
                )
            distilling = DistillSettings(**shared, chunk_examples=chunk)
            run_distill(DistillRun(dataset, snapshot, target, before, keywords, distilling), told)
        case _:
            aligning = AlignSettings(**shared)
            run_align(AlignRun(dataset, snapshot, target, before, aligning), told)
