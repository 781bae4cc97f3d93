"""Whether a snapshot and a checkpoint belong together: codec, layout, vocabulary.

Opening a checkpoint checks its tokenizer and its tensors against its own layout, so what is left is
that both mean the same SIDs.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from index.errors import ArtifactError, ConfigError
from index.rescoring import RescoringWeights
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.registry.record import Pairing

ENCODER_KINDS = "models.text_encoders"
"""Registers the kinds of encoder that a snapshot may hold beside the static one."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """A pair that fits, and what its parts say of themselves."""

    pairing: Pairing
    lineage: dict[str, Any]
    metrics: dict[str, Any]


def check_pair(snapshot: Path, checkpoint: Path) -> Fitting:
    """Open both without reading their hashes again, and compare.

    Raises ArtifactError naming what differs and what would be right.
    """
    import_module(ENCODER_KINDS)
    opened, trained = (
        Snapshot.open(snapshot, verify=False),
        Checkpoint.open(checkpoint, verify=False),
    )
    check_parts(opened, trained)
    settings, layout, codec_id = trained.settings, opened.layout, opened.codec.id
    facts = opened.manifest
    pairing = Pairing(
        opened.version,
        trained.version,
        codec_id,
        layout.level_sizes,
        str(facts.get("dataset_version", "")),
        bool(facts.get("simulated")) or settings.simulated,
    )
    lineage = {
        "snapshot_parents": list(facts.get("parents", ())),
        "checkpoint_parents": list(settings.parents),
        "trained_on_snapshot": settings.snapshot_version,
        "stage": settings.stage,
        "catalogue": dict(facts.get("live", {})),
        "counts": dict(facts.get("counts", {})),
    }
    return Fitting(pairing, lineage, dict(trained.metrics))


def check_parts(snapshot: Snapshot, checkpoint: Checkpoint) -> RescoringWeights:
    """Compare opened parts; the weights of the ranking that come with the checkpoint.

    Raises ArtifactError naming what differs and what would be right.
    """
    settings, layout = checkpoint.settings, snapshot.layout
    if settings.level_sizes != layout.level_sizes:
        raise ArtifactError(
            f"checkpoint {checkpoint.path} has SID levels {settings.level_sizes}, snapshot "
            f"{snapshot.path} has {layout.level_sizes}; use a pair built together"
        )
    if settings.codec_id != snapshot.codec.id:
        raise ArtifactError(
            f"checkpoint {checkpoint.path} was trained for codec "
            f"{settings.codec_id or '(none named)'}, snapshot {snapshot.path} has "
            f"{snapshot.codec.id}; train on this snapshot or take the one that it was trained on"
        )
    if not settings.rescoring:
        return RescoringWeights()
    try:
        return RescoringWeights.from_json(settings.rescoring)
    except ConfigError as error:
        raise ArtifactError(f"checkpoint {checkpoint.path}: {error}") from None
