"""One fine-tuning run from artifacts to artifact: dataset + snapshot → checkpoint.

Opens everything, checks that the parts belong together, trains (or resumes), fits the rescoring
weights on validation queries, measures the valid-SID rate, and publishes the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.native.runner import Runner
from decoding.weights import DecoderWeights
from index import artifact
from index.dataset import Dataset
from index.errors import ArtifactError, ConfigError
from index.rescoring import RescoringWeights
from index.snapshot import Snapshot
from models.checkpoint import KIND as CHECKPOINT_KIND
from models.checkpoint import Checkpoint, CheckpointSettings, save_checkpoint, start_from
from models.prompt import PromptBuilder, PromptSettings, prompt_text
from models.query import QueryPrompts
from models.tokenizer import Tokenizer
from models.training import sft, state
from models.training.build import fit_pseudo_queries
from models.training.curriculum import Curriculum
from models.training.evaluate import Searchers, fit_weights, unconstrained_valid_rate
from models.training.material import Material, read_material
from models.training.relevance import relevant_rows
from models.training.sft import SftSettings
from models.training.teacher import Teacher
from models.transformer import Qwen3

RESCORING_QUERIES = 600
FITTING_BEAM = 128
VALID_RATE_QUERIES = 100
SERVING_PROMPT = PromptSettings(max_query_tokens=20, query_code_count=4)


@dataclass(frozen=True, slots=True)
class SftRun:
    """What to train from and to. `init`: a checkpoint of ours, or any local Qwen3 directory."""

    dataset: Dataset
    snapshot: Snapshot
    checkpoint: Path
    init: Path | None = None
    settings: SftSettings = field(default_factory=SftSettings)
    prompt: PromptSettings = field(default_factory=lambda: SERVING_PROMPT)
    overwrite: bool = False


def run_sft(
    run: SftRun,
    report: Callable[[sft.Progress], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Train and publish. Raises ArtifactError when the parts do not belong together."""
    say = announce or _silent
    _check_belongs(run)
    say("reading training material")
    material = read_material(run.dataset)
    model, tokenizer, prompt = _start(run, material)
    teacher = Teacher(
        run.snapshot.dense.vectors(np.arange(len(run.snapshot.items))), run.snapshot.lexical
    )
    curriculum = Curriculum(
        run.snapshot,
        material,
        PromptBuilder(tokenizer, prompt),
        fit_pseudo_queries(material),
        teacher,
        mixture=run.settings.mixture,
        chunk_examples=run.settings.chunk_examples,
        seed=run.settings.seed,
    )
    state_directory = state.state_path(run.checkpoint)
    parents = (run.dataset.version, run.snapshot.version, str(run.init or ""))
    say("training")
    result = sft.train(
        model,
        curriculum,
        tokenizer,
        run.snapshot.codec,
        run.settings,
        state_directory=state_directory,
        fingerprint=run.settings.fingerprint(*parents),
        report=report,
    )
    model = model.to("cpu")
    say("fitting rescoring weights")
    settings = CheckpointSettings(
        level_sizes=run.snapshot.layout.level_sizes,
        sid_offset=tokenizer.sid_offset,
        level_prior_beta=run.settings.prior_beta,
        prompt=prompt,
        snapshot_version=run.snapshot.version,
        codec_id=run.snapshot.codec.id,
        stage="sft",
        simulated=run.dataset.simulated,
        parents=(run.dataset.version, run.snapshot.version),
    )
    rescoring, metrics = _fit_rescoring(run, model, tokenizer, settings)
    metrics |= {
        "steps": result.steps,
        "examples": result.examples,
        "train_s": round(result.seconds, 1),
        "examples_per_s": round(result.examples_per_s),
        "loss": round(result.loss, 4),
        "train_queries": len(material.queries),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    saved = save_checkpoint(
        run.checkpoint,
        model,
        tokenizer,
        replace(settings, rescoring=rescoring),
        metrics,
        overwrite=run.overwrite,
    )
    state.remove(state_directory)
    return saved


def runner_of(model: Qwen3, tokenizer: Tokenizer, snapshot: Snapshot) -> Runner:
    """The native engine's runner over live weights (copied: take it again after an update)."""
    weights = DecoderWeights.from_state_dict(
        model.config.to_json(), model.state_dict(), snapshot.layout, tokenizer.sid_offset
    )
    return Runner(weights, snapshot.trie)


def _check_belongs(run: SftRun) -> None:
    artifact.check_free(run.checkpoint, CHECKPOINT_KIND, overwrite=run.overwrite)
    if len(run.snapshot.items) != run.dataset.items.num_rows:
        raise ArtifactError(
            f"snapshot {run.snapshot.path} has {len(run.snapshot.items)} items, dataset "
            f"{run.dataset.path} has {run.dataset.items.num_rows}; build the snapshot from it"
        )
    if run.dataset.version not in run.snapshot.manifest.get("parents", []):
        raise ArtifactError(
            f"snapshot {run.snapshot.path} was not built from dataset {run.dataset.path} (version "
            f"{run.dataset.version}); with another split it may know the test queries: "
            "build the snapshot from this dataset"
        )
    ids = run.dataset.items.column("item_id").to_pylist()
    if run.snapshot.items.item_ids(np.arange(len(ids))) != ids:
        raise ArtifactError(
            f"snapshot {run.snapshot.path} was built from another catalogue than {run.dataset.path}"
        )


def _start(run: SftRun, material: Material) -> tuple[Qwen3, Tokenizer, PromptSettings]:
    """A fresh model, one of our checkpoints, or any Qwen3 directory, vocabulary extended."""
    layout = run.snapshot.layout
    if run.init is None:
        texts = [*material.item_texts, *material.queries, *material.queries]
        texts = [prompt_text(text) for text in texts]
        tokenizer = Tokenizer.train(texts, run.settings.vocabulary_size, layout=layout)
        model = sft.new_model(run.settings, tokenizer, run.snapshot.codec, run.snapshot.encoder)
        return model, tokenizer, run.prompt
    if (run.init / "onesearch.json").is_file():
        checkpoint = Checkpoint.open(run.init)
        if checkpoint.settings.codec_id != run.snapshot.codec.id:
            raise ArtifactError(
                f"checkpoint {run.init} was trained for codec {checkpoint.settings.codec_id}, "
                f"snapshot {run.snapshot.path} has {run.snapshot.codec.id}"
            )
        if checkpoint.settings.level_prior_beta != run.settings.prior_beta:
            raise ConfigError(
                f"checkpoint {run.init} has prior β {checkpoint.settings.level_prior_beta}; "
                "continue with the same one (--prior-beta)"
            )
        return checkpoint.load_model(), checkpoint.tokenizer, checkpoint.settings.prompt
    model, tokenizer = start_from(run.init, layout, seed=run.settings.seed)
    return model, tokenizer, run.prompt


def _fit_rescoring(
    run: SftRun, model: Qwen3, tokenizer: Tokenizer, settings: CheckpointSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights fitted on validation queries, and the unconstrained valid-SID rate there."""
    snapshot = run.snapshot
    runner = runner_of(model, tokenizer, snapshot)
    prompts = QueryPrompts(
        snapshot.codec, PromptBuilder(tokenizer, settings.prompt), settings.level_prior_beta
    )
    default = RescoringWeights()
    searchers = Searchers(
        snapshot, prompts, runner.search_batch, FITTING_BEAM, default, default, default
    )
    truth = _sample(relevant_rows(run.dataset, "validation"), run.settings.seed)
    if not truth:
        return default.to_json(), {"rescoring_queries": 0}
    generative, codec_only, retrieval = fit_weights(searchers, truth)
    rescoring = generative.to_json() | {
        "codec_only": codec_only.to_json(),
        "hybrid_rescored": retrieval.to_json(),
        "fitted_at_beam": FITTING_BEAM,
    }
    texts = list(truth)[:VALID_RATE_QUERIES]
    embedded = snapshot.embed_queries(texts)
    with torch.inference_mode():
        valid = unconstrained_valid_rate(
            model, tokenizer, snapshot, prompts.prompts(texts, embedded, [()] * len(texts))
        )
    return rescoring, {"rescoring_queries": len(truth), "unconstrained_valid_rate": valid}


def _sample(truth: Mapping[str, NDArray[np.int64]], seed: int) -> dict[str, NDArray[np.int64]]:
    queries = sorted(truth)
    if len(queries) > RESCORING_QUERIES:
        random = np.random.default_rng(seed)
        chosen = np.sort(random.choice(len(queries), RESCORING_QUERIES, replace=False))
        queries = [queries[i] for i in chosen]
    return {query: truth[query] for query in queries}


def _silent(message: str) -> None:
    """Announce to nobody."""
