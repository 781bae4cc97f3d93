"""What follows every training stage: calibrate, fit the ranking weights, measure, publish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.engine import Prompt
from decoding.native.runner import Runner
from decoding.weights import DecoderWeights
from index import artifact
from index.dataset import Dataset
from index.errors import ArtifactError
from index.rescoring import RescoringWeights
from index.snapshot import Snapshot
from models.checkpoint import KIND as CHECKPOINT_KIND
from models.checkpoint import Checkpoint, CheckpointSettings, save_checkpoint
from models.prompt import PromptBuilder
from models.query import QueryPrompts
from models.tokenizer import Tokenizer
from models.training import state
from models.training.calibration import calibrate, undo
from models.training.evaluate import unconstrained_valid_rate
from models.training.parallel import gathered, this_process, wait, whole
from models.training.personal_weights import personal_settings
from models.training.rankers import SERVED, Searchers, fit_weights
from models.training.relevance import relevant_rows
from models.transformer import Qwen3

RESCORING_QUERIES = 600
FITTING_BEAM = 128
VALID_RATE_QUERIES = 100
_LEVEL_FACTORS = "level_factors"


def publish(
    path: Path,
    model: Qwen3,
    tokenizer: Tokenizer,
    settings: CheckpointSettings,
    dataset: Dataset,
    snapshot: Snapshot,
    metrics: Mapping[str, Any],
    *,
    overwrite: bool,
    seed: int,
    earlier_factors: Sequence[float] = (),
) -> Checkpoint:
    """Calibrate, fit, measure, save. `settings` without ranking weights; `earlier_factors` of the
    checkpoint that the training went on from. Of several processes the first does it, the others
    wait."""
    model = gathered(model).to("cpu")
    if not this_process().first:
        wait()
        return Checkpoint.open(path)
    # Of decoders that learned from users, plain queries do not say how far they can be trusted.
    truth = {} if dataset.events.num_rows else relevant_rows(dataset, "validation")
    asked = _sample(truth, seed)
    factors = calibrate(model, tokenizer, settings, snapshot, asked, FITTING_BEAM, earlier_factors)
    rescoring, measured = fit_rescoring(model, tokenizer, settings, dataset, snapshot, seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    saved = save_checkpoint(
        path,
        model,
        tokenizer,
        replace(settings, rescoring=rescoring),
        {**measured, **metrics, "parameters": parameters, _LEVEL_FACTORS: list(factors)},
        overwrite=overwrite,
    )
    state.remove(state.state_path(path))
    wait()
    return saved


def fit_rescoring(
    model: Qwen3,
    tokenizer: Tokenizer,
    settings: CheckpointSettings,
    dataset: Dataset,
    snapshot: Snapshot,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights fitted on validation queries, and the unconstrained valid-SID rate there."""
    runner = runner_of(model, tokenizer, snapshot)
    prompts = QueryPrompts(
        snapshot.codec, PromptBuilder(tokenizer, settings.prompt), settings.level_prior_beta
    )
    searchers = Searchers(snapshot, prompts, runner.search_batch, FITTING_BEAM, {})
    truth = _sample(relevant_rows(dataset, "validation"), seed)
    if not truth:
        return RescoringWeights().to_json(), {"rescoring_queries": 0}
    fitted = {name: weights.to_json() for name, weights in fit_weights(searchers, truth).items()}
    rescoring = fitted.pop(SERVED) | fitted
    rescoring |= {"fitted_at_beam": FITTING_BEAM, "fitted_with_retrieved": searchers.retrieved}
    rescoring |= personal_settings(
        dataset, snapshot, prompts, runner.search_batch, FITTING_BEAM, seed
    )
    texts = list(truth)[:VALID_RATE_QUERIES]
    embedded = snapshot.embed_queries(texts)
    asked = prompts.prompts(texts, embedded, [()] * len(texts))
    valid = valid_rate(model, tokenizer, snapshot, asked)
    return rescoring, {"rescoring_queries": len(truth), "unconstrained_valid_rate": valid}


def valid_rate(
    model: Qwen3, tokenizer: Tokenizer, snapshot: Snapshot, prompts: list[Prompt]
) -> float:
    """Share of legal SIDs when nothing forbids the others. Leaves the model as it was."""
    training = model.training
    measured = gathered(model)
    if measured.lm_head.weight.device.type != "cpu":
        measured = deepcopy(measured).to("cpu")
    with torch.inference_mode():
        rate = unconstrained_valid_rate(measured, tokenizer, snapshot, prompts)
    model.train(training)
    return rate


def runner_of(model: Qwen3, tokenizer: Tokenizer, snapshot: Snapshot) -> Runner:
    """The native engine's runner over live weights (copied: take it again after an update). What
    is fitted on its scores repeats, as training does."""
    return Runner(weights_of(model, tokenizer, snapshot), snapshot.trie, measured=False)


def weights_of(model: Qwen3, tokenizer: Tokenizer, snapshot: Snapshot) -> DecoderWeights:
    """The engine's arrangement of a model's weights as they are now, in memory."""
    tensors = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    return DecoderWeights.from_state_dict(
        model.config.to_json(), tensors, snapshot.layout, tokenizer.sid_offset
    )


def check_belongs(dataset: Dataset, snapshot: Snapshot, target: Path, *, overwrite: bool) -> None:
    """Raises ArtifactError when the target is taken, or the snapshot is not of the dataset."""
    artifact.check_free(target, CHECKPOINT_KIND, overwrite=overwrite)
    if len(snapshot.items) != dataset.items.num_rows:
        raise ArtifactError(
            f"snapshot {snapshot.path} has {len(snapshot.items)} items, dataset "
            f"{dataset.path} has {dataset.items.num_rows}; build the snapshot from it"
        )
    # A dataset that only added behaviour to another one keeps the sides of that one's queries.
    versions = {dataset.version, *dataset.manifest.get("extends", ())}
    if versions.isdisjoint(snapshot.manifest.get("parents", [])):
        raise ArtifactError(
            f"snapshot {snapshot.path} was not built from dataset {dataset.path} (version "
            f"{dataset.version}); with another split it may know the test queries: "
            "build the snapshot from this dataset"
        )
    ids = dataset.items.column("item_id").to_pylist()
    if snapshot.items.item_ids(np.arange(len(ids))) != ids:
        raise ArtifactError(
            f"snapshot {snapshot.path} was built from another catalogue than {dataset.path}"
        )


def open_initial(path: Path, snapshot: Snapshot) -> Checkpoint:
    """A checkpoint to go on from. Raises ArtifactError when it is of another codec."""
    checkpoint = Checkpoint.open(path)
    if checkpoint.settings.codec_id != snapshot.codec.id:
        raise ArtifactError(
            f"checkpoint {path} was trained for codec {checkpoint.settings.codec_id}, "
            f"snapshot {snapshot.path} has {snapshot.codec.id}"
        )
    return checkpoint


def initial_model(checkpoint: Checkpoint) -> Qwen3:
    """The model of a checkpoint to go on from, as it was before it was calibrated."""
    model = checkpoint.load_model()
    undo(model, checkpoint.tokenizer, factors_of(checkpoint))
    return model


def factors_of(checkpoint: Checkpoint) -> tuple[float, ...]:
    """What `calibrate` multiplied the output rows of each level by; () where nobody did."""
    return tuple(checkpoint.metrics.get(_LEVEL_FACTORS, ()))


def _sample(truth: Mapping[str, NDArray[np.int64]], seed: int) -> dict[str, NDArray[np.int64]]:
    queries = sorted(truth)
    if len(queries) > RESCORING_QUERIES:
        random = np.random.default_rng(seed)
        chosen = np.sort(random.choice(len(queries), RESCORING_QUERIES, replace=False))
        queries = [queries[i] for i in chosen]
    return {query: truth[query] for query in queries}
