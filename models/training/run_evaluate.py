"""One evaluation from artifacts: open snapshot and checkpoint, check that they fit, measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from decoding.native.runner import Runner, default_threads
from decoding.weights import DecoderWeights
from index.errors import ArtifactError
from index.rescoring import RescoringWeights
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.query import QueryPrompts
from models.training.evaluate import evaluate, unconstrained_valid_rate
from models.training.judgments_file import JudgmentsFile
from models.training.rankers import RESCORED, SERVED, Searchers

VALID_RATE_QUERIES = 200


def run_evaluate(
    snapshot_path: Path,
    checkpoint_path: Path,
    judgments: Callable[[Snapshot], JudgmentsFile],
    methods: Sequence[str],
    beam_width: int,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The report of `onesearch evaluate`. Raises ArtifactError when the two do not fit."""
    torch.set_num_threads(default_threads())
    snapshot = Snapshot.open(snapshot_path)
    checkpoint = Checkpoint.open(checkpoint_path)
    searchers = searchers_of(snapshot, checkpoint, beam_width)
    found = judgments(snapshot)
    report = evaluate(searchers, found.relevant, methods, progress=progress)
    if any(name.startswith("generative") for name in methods):
        texts = list(found.relevant)[:VALID_RATE_QUERIES]
        prompts = searchers.prompts.prompts(texts, snapshot.embed_queries(texts), [()] * len(texts))
        report["unconstrained_valid_rate"] = unconstrained_valid_rate(
            checkpoint.load_model(), checkpoint.tokenizer, snapshot, prompts
        )
    report["model_version"] = checkpoint.version
    report["index_version"] = snapshot.version
    report["simulated"] = bool(snapshot.manifest.get("simulated")) or checkpoint.settings.simulated
    report["notes"] = _notes(found)
    return report


def searchers_of(snapshot: Snapshot, checkpoint: Checkpoint, beam_width: int) -> Searchers:
    """The native engine and fitted weights of a checkpoint over a snapshot."""
    if checkpoint.settings.codec_id != snapshot.codec.id:
        raise ArtifactError(
            f"checkpoint {checkpoint.path} was trained for codec {checkpoint.settings.codec_id}, "
            f"snapshot {snapshot.path} has {snapshot.codec.id}; they do not belong together"
        )
    runner = Runner(DecoderWeights.from_directory(checkpoint.path), snapshot.trie)
    runner.warm_up()
    return Searchers(
        snapshot,
        QueryPrompts.of(snapshot.codec, checkpoint),
        runner.search_batch,
        beam_width,
        weights_of(checkpoint),
    )


def weights_of(checkpoint: Checkpoint) -> dict[str, RescoringWeights]:
    """The fitted weights of each method; those of the served ranking lie at the top level."""
    fitted = checkpoint.settings.rescoring
    if not fitted:
        return {}
    methods = {name: fitted[name] for name in RESCORED if name in fitted} | {SERVED: fitted}
    return {name: RescoringWeights.from_json(data) for name, data in methods.items()}


def _notes(found: JudgmentsFile) -> list[str]:
    notes: list[str] = []
    if found.unknown_items:
        notes.append(f"{found.unknown_items} judgments name items that the snapshot lacks")
    if found.queries_without_relevant:
        notes.append(f"{found.queries_without_relevant} queries have no relevant item: left out")
    return notes
