"""One evaluation of personalised search from artifacts: dataset, snapshot, checkpoint → report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decoding.native.runner import Runner, default_threads
from decoding.weights import DecoderWeights
from index.dataset import Dataset
from index.errors import ArtifactError, ConfigError
from index.snapshot import Snapshot
from index.taste import MAX_HISTORY, TasteTable
from models.checkpoint import Checkpoint
from models.query import QueryPrompts
from models.training.leakage import check_leakage
from models.training.next_item_evaluation import evaluate_next, read_cases
from models.training.personal_evaluation import evaluate_visits
from models.training.personal_weights import VisitSearch
from models.training.visit_slices import searches_by_query, slices_of
from models.training.visits import Visit, read_choices, read_visits, rows_by_id

MAX_VISITS = 4_000
SPLITS = ("test", "validation", "train")


def run_personal(
    dataset_path: Path,
    snapshot_path: Path,
    checkpoint_path: Path,
    beam_width: int,
    *,
    seed: int = 7,
    max_visits: int = MAX_VISITS,
    split: str = "test",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The report of `onesearch evaluate --visits`: weights fitted on the dataset's validation
    visits, figures on those of `split` (a seeded sample of at most `max_visits` of each). On the
    training split they say what was learnt by heart, not how well anything is found.

    Raises ConfigError for an unknown split, ArtifactError when the parts do not belong together,
    DataError when training material knows what is measured.
    """
    if split not in SPLITS:
        raise ConfigError(f"there is no split {split!r}; known: {', '.join(SPLITS)}")
    torch.set_num_threads(default_threads())
    dataset = Dataset.open(dataset_path)
    snapshot, checkpoint = Snapshot.open(snapshot_path), Checkpoint.open(checkpoint_path)
    searcher = visit_search(dataset, snapshot, checkpoint, beam_width)
    training = read_visits(dataset, "train")
    check_leakage(dataset, training)
    validation, test = (
        _sample(read_visits(dataset, name, max_history=MAX_HISTORY), max_visits, seed)
        for name in ("validation", split)
    )
    slices = slices_of(test, training, searches_by_query(dataset))
    following = read_cases(dataset, split) if split == "test" and has_sequences(dataset) else []
    report = evaluate_visits(searcher, validation, test, slices, seed=seed, progress=progress)
    if following:
        sequences = [
            [choice.row for choice in found]
            for found in read_choices(dataset.events_before_cut(), rows_by_id(dataset)).values()
        ]
        report["next_item"] = evaluate_next(
            searcher, following, sequences, seed=seed, progress=progress
        )
    return report | {
        "split": split,
        "validation_visits": len(validation),
        "dataset_version": dataset.version,
        "model_version": checkpoint.version,
        "index_version": snapshot.version,
        "simulated": dataset.simulated or checkpoint.settings.simulated,
        "queries_derived": dataset.queries_derived,
    }


def has_sequences(dataset: Dataset) -> bool:
    """Whether choices without a query are worth foretelling: the source marked its steps, and its
    queries are only derived."""
    return dataset.queries_derived


def visit_search(
    dataset: Dataset, snapshot: Snapshot, checkpoint: Checkpoint, beam_width: int
) -> VisitSearch:
    """The native engine of a checkpoint over a snapshot. Raises ArtifactError unless both come
    from this dataset."""
    if checkpoint.settings.codec_id != snapshot.codec.id:
        raise ArtifactError(
            f"checkpoint {checkpoint.path} was trained for codec {checkpoint.settings.codec_id}, "
            f"snapshot {snapshot.path} has {snapshot.codec.id}; they do not belong together"
        )
    ids = dataset.items.column("item_id").to_pylist()
    known = snapshot.items.item_ids(np.arange(len(snapshot.items)))
    if ids != known:
        raise ArtifactError(
            f"snapshot {snapshot.path} was built from another catalogue than {dataset.path}"
        )
    runner = Runner(DecoderWeights.from_directory(checkpoint.path), snapshot.trie)
    runner.warm_up()
    prompts = QueryPrompts.of(snapshot.codec, checkpoint)
    taste = TasteTable.of(dataset.items)
    return VisitSearch(snapshot, prompts, runner.search_batch, beam_width, taste)


def _sample(visits: list[Visit], count: int, seed: int) -> list[Visit]:
    if len(visits) <= count:
        return visits
    random = np.random.default_rng(seed)
    return [visits[i] for i in np.sort(random.choice(len(visits), count, replace=False))]
