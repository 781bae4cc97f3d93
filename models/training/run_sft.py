"""One fine-tuning run from artifacts to artifact: dataset + snapshot → checkpoint.

Opens everything, checks that the parts belong together, trains (or resumes), fits the rescoring
weights on validation queries, measures the valid-SID rate, and publishes the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from index.dataset import Dataset
from index.errors import ConfigError
from index.snapshot import Snapshot
from index.text import words
from models.checkpoint import Checkpoint, CheckpointSettings, start_from
from models.prompt import PromptBuilder, PromptSettings, prompt_text
from models.tokenizer import Tokenizer
from models.training import loop, sft, state
from models.training.build import fit_pseudo_queries
from models.training.curriculum import Curriculum, Mixture
from models.training.keyword_table import KeywordTable
from models.training.likelihood import QueryLikelihood
from models.training.material import Material, read_material
from models.training.publishing import (
    check_belongs,
    factors_of,
    initial_model,
    open_initial,
    publish,
)
from models.training.ranking_teacher import RankingTeacher
from models.training.sft import SftSettings
from models.training.teacher import Teacher, Teaches
from models.transformer import Qwen3

CERTAIN = 0.7
"""Judged pairs of at least this weight count as relevant in the query likelihood."""
SERVING_PROMPT = PromptSettings(max_query_tokens=20, query_code_count=4)


@dataclass(frozen=True, slots=True)
class SftRun:
    """What to train from and to. `init`: a checkpoint of ours, or any local Qwen3 directory.
    `keywords`: switches on what the settings' mixture says of keywords; None: none of it."""

    dataset: Dataset
    snapshot: Snapshot
    checkpoint: Path
    init: Path | None = None
    keywords: KeywordTable | None = None
    settings: SftSettings = field(default_factory=SftSettings)
    prompt: PromptSettings = field(default_factory=lambda: SERVING_PROMPT)
    overwrite: bool = False

    @property
    def components(self) -> dict[str, Any]:
        """What is switched on, for the checkpoint's manifest."""
        if self.keywords is None:
            return {}
        mixture = self.settings.mixture
        return {
            "keywords": self.keywords.version,
            "thoughts": list(mixture.thought_tasks) if mixture.thought_share > 0 else [],
            "keyword_share": mixture.keyword_share,
        }


def run_sft(
    run: SftRun,
    report: Callable[[loop.Progress], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Train and publish. Raises ArtifactError when the parts do not belong together."""
    say = announce or silent
    dataset, snapshot = run.dataset, run.snapshot
    check_belongs(dataset, snapshot, run.checkpoint, overwrite=run.overwrite)
    say("reading training material")
    material = read_material(dataset)
    model, tokenizer, prompt, earlier = _start(run, material)
    curriculum = curriculum_of(
        snapshot,
        material,
        PromptBuilder(tokenizer, prompt),
        run.keywords,
        mixture=run.settings.mixture,
        chunk_examples=run.settings.chunk_examples,
        seed=run.settings.seed,
    )
    state_directory = state.state_path(run.checkpoint)
    keywords = run.keywords.version if run.keywords is not None else ""
    parents = (dataset.version, snapshot.version, str(run.init or ""), keywords, repr(prompt))
    say("training")
    result = sft.train(
        model,
        curriculum,
        tokenizer,
        snapshot.codec,
        run.settings,
        state_directory=state_directory,
        fingerprint=loop.fingerprint(run.settings, *parents),
        report=report,
    )
    say("fitting rescoring weights")
    settings = CheckpointSettings(
        level_sizes=snapshot.layout.level_sizes,
        sid_offset=tokenizer.sid_offset,
        level_prior_beta=run.settings.prior_beta,
        prompt=prompt,
        snapshot_version=snapshot.version,
        codec_id=snapshot.codec.id,
        stage="sft",
        simulated=dataset.simulated,
        parents=(dataset.version, snapshot.version, *earlier.parents),
        components={**earlier.components, "sft": run.components},
    )
    return publish(
        run.checkpoint,
        model,
        tokenizer,
        settings,
        dataset,
        snapshot,
        result.metrics() | {"train_queries": len(material.queries)},
        overwrite=run.overwrite,
        seed=run.settings.seed,
        earlier_factors=earlier.factors,
    )


def curriculum_of(
    snapshot: Snapshot,
    material: Material,
    prompts: PromptBuilder,
    keywords: KeywordTable | None,
    *,
    mixture: Mixture,
    chunk_examples: int,
    seed: int,
) -> Curriculum:
    """The curriculum of a snapshot, with pseudo-queries and teacher fitted for it."""
    return Curriculum(
        snapshot,
        material,
        prompts,
        fit_pseudo_queries(material),
        teacher_of(snapshot, material),
        mixture=mixture,
        chunk_examples=chunk_examples,
        seed=seed,
        keywords=keywords,
    )


def teacher_of(snapshot: Snapshot, material: Material) -> Teaches:
    """Who says what is to be generated: with users' searches dense and lexical search, beside what
    the users chose; without, a ranking that learned from the judged pairs."""
    vectors = snapshot.dense.vectors(np.arange(len(snapshot.items)))
    if material.visits or not material.known:
        return Teacher(vectors, snapshot.lexical)
    pairs = (
        (words(query), row)
        for query, wanted in material.known.items()
        for row, weight in wanted
        if weight >= CERTAIN
    )
    likelihood = QueryLikelihood.fit(material.titles, pairs)
    return RankingTeacher(vectors, snapshot.lexical, likelihood)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a run goes on from: of its initial checkpoint, if any, the version, the components
    and the factors of calibration."""

    parents: tuple[str, ...] = ()
    components: dict[str, Any] = field(default_factory=dict[str, Any])
    factors: tuple[float, ...] = ()


def _start(run: SftRun, material: Material) -> tuple[Qwen3, Tokenizer, PromptSettings, Earlier]:
    """A fresh model, one of our checkpoints, or any Qwen3 directory, vocabulary extended."""
    layout = run.snapshot.layout
    if run.init is None:
        texts = [*material.item_texts, *material.queries, *material.queries]
        texts = [prompt_text(text) for text in texts]
        tokenizer = Tokenizer.train(texts, run.settings.vocabulary_size, layout=layout)
        model = sft.new_model(run.settings, tokenizer, run.snapshot.codec, run.snapshot.encoder)
        return model, tokenizer, _prompt_of(run.prompt, material), Earlier()
    if (run.init / "onesearch.json").is_file():
        checkpoint = open_initial(run.init, run.snapshot)
        if checkpoint.settings.level_prior_beta != run.settings.prior_beta:
            raise ConfigError(
                f"checkpoint {run.init} has prior β {checkpoint.settings.level_prior_beta}; "
                "continue with the same one (--prior-beta)"
            )
        components, factors = checkpoint.settings.components, factors_of(checkpoint)
        earlier = Earlier((checkpoint.version,), components, factors)
        return initial_model(checkpoint), checkpoint.tokenizer, checkpoint.settings.prompt, earlier
    model, tokenizer = start_from(run.init, layout, seed=run.settings.seed)
    return model, tokenizer, _prompt_of(run.prompt, material), Earlier()


def _prompt_of(prompt: PromptSettings, material: Material) -> PromptSettings:
    """No histories where none is trained on: a span that a model never saw confuses it."""
    if any(visit.history for visit in material.visits):
        return prompt
    return replace(prompt, max_history=0, user_sid=False)


def silent(message: str) -> None:
    """Announce to nobody."""
