"""Supervised fine-tuning, stages 1 to 3.

    L = Σ_l mean_points[ −Σ_k y_k log softmax(h·W_lᵀ + β⟨e, C_l⟩)_k ]  +  λ · CE(text positions)

    y      distribution of the teacher's and the users' SIDs given the sampled prefix
    β      codebook prior: the decoder starts as the nearest-centroid router, then corrects it
    e      query vector; token rows start as the encoder's vectors, SID rows as the centroids

AdamW, linear warm-up then linear decay to zero, gradient clipping, bf16 autocast over fp32 weights,
packed rows. Deviations from the published recipe (METHOD §3): soft targets distilled from exact
hybrid search instead of one clicked item (QUALITY shows why), one schedule over all three stages.

    onesearch train sft DATASET SNAPSHOT CHECKPOINT [--init CHECKPOINT] [--max-minutes N]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from index.codec import Codec
from index.encoder import TextEncoder
from index.errors import ConfigError
from models.tokenizer import Tokenizer
from models.training import loop, parallel
from models.training.batches import Batches
from models.training.curriculum import Curriculum, Mixture
from models.training.examples import PackedBatch
from models.training.loop import LoopResult, Progress, Schedule, StepResult
from models.training.losses import soft_cross_entropy, text_loss
from models.training.readout import Readout
from models.transformer import Qwen3, Qwen3Config

FloatArray = NDArray[np.float32]
TEXT_LOSS_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class SftSettings:
    """Model shape and optimisation. `examples`: how many are seen in all, repeats included;
    `row_length`: tokens of a packed row, 0 for the one that wastes least;
    `recompute`: gradient checkpointing."""

    hidden_size: int = 256
    layers: int = 2
    heads: int = 4
    key_heads: int = 2
    head_dim: int = 64
    inner_size: int = 768
    vocabulary_size: int = 8192
    prior_beta: float = 20.0
    examples: int = 2_000_000
    batch_examples: int = 1024
    accumulate: int = 1
    chunk_examples: int = 16_384
    row_length: int = 0
    paths: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    max_minutes: float | None = None
    save_every_s: float = 60.0
    recompute: bool = False
    device: str = "cpu"
    seed: int = 7
    mixture: Mixture = field(default_factory=Mixture)

    @property
    def step_examples(self) -> int:
        """Examples of one optimiser step."""
        return self.batch_examples * self.accumulate

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            self.examples,
            self.step_examples,
            self.learning_rate,
            self.max_minutes,
            self.save_every_s,
        )


def new_model(
    settings: SftSettings, tokenizer: Tokenizer, codec: Codec, encoder: TextEncoder
) -> Qwen3:
    """A decoder whose input rows start in the encoder's space.

    Text tokens start as the encoder's vector of their text, SID tokens as their centroid, both at
    norm 1 in the first `dimension` columns (projected where the model is narrower).
    """
    config = Qwen3Config(
        vocab_size=tokenizer.size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.inner_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_heads,
        head_dim=settings.head_dim,
    )
    model = Qwen3(config).initialise(torch.Generator().manual_seed(settings.seed))
    project = _projection(encoder.dimension, settings.hidden_size, settings.seed)
    texts = [tokenizer.decode_text([token]) for token in range(tokenizer.text_size)]
    rows = torch.from_numpy(encoder.encode(texts) @ project)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        known = rows.norm(dim=1) > 0
        embedding[: len(rows)][known] = rows[known]
        for level, centroids in enumerate(codec.centroids):
            scale = float(np.sqrt((centroids**2).sum(axis=1).mean()))
            block = torch.from_numpy((centroids / max(scale, 1e-6)) @ project)
            embedding[tokenizer.level_slice(level)] = block
    return model


def train(
    model: Qwen3,
    curriculum: Curriculum,
    tokenizer: Tokenizer,
    codec: Codec,
    settings: SftSettings,
    *,
    state_directory: Path,
    fingerprint: str,
    report: Callable[[Progress], None] | None = None,
) -> LoopResult:
    """Train `model` in place; resumes from `state_directory` when it holds a matching state."""
    if settings.batch_examples > settings.chunk_examples:
        raise ConfigError("batch_examples must not exceed chunk_examples")
    return loop.run(
        SftStage(model, Batches(curriculum.chunk, tokenizer, settings), tokenizer, codec, settings),
        settings.schedule,
        state_directory=state_directory,
        fingerprint=fingerprint,
        report=report,
    )


class SftStage:
    """Model, optimiser and batches."""

    def __init__(
        self,
        model: Qwen3,
        batches: Batches,
        tokenizer: Tokenizer,
        codec: Codec,
        settings: SftSettings,
    ) -> None:
        self._device = torch.device(settings.device)
        self.model = model.train().to(self._device)
        self.model.recompute = settings.recompute
        parallel.shard(self.model)
        self.optimiser = loop.make_optimiser(model, settings.learning_rate, settings.weight_decay)
        self.others: dict[str, torch.nn.Module] = {}
        self._settings = settings
        self._batches = batches
        self._readout = Readout(tokenizer, codec, settings.prior_beta, self._device)

    def step(self, number: int, progress: float, rate: float) -> StepResult:
        """One optimiser step; reads the loss (a host sync, once a step)."""
        stage = self._settings.mixture.stage_of(progress)
        total = torch.zeros((), device=self._device)
        for part in range(self._settings.accumulate):
            batch = self._batches.batch(number * self._settings.accumulate + part, stage)
            loss = self.loss(batch.to(self._device)) / self._settings.accumulate
            torch.autograd.backward(loss)
            total += loss.detach()
        loop.update(self.model, self.optimiser, rate, self._settings.clip_norm)
        return StepResult(float(total), stage, {})

    def loss(self, batch: PackedBatch) -> torch.Tensor:
        """The loss of one batch that is on the model's device; a scalar with a gradient."""
        with torch.autocast(self._device.type, torch.bfloat16):
            hidden = self.model.hidden(
                batch.token_ids, batch.position_ids, batch.mask, points=batch.points
            )
            logits = self._readout.level_logits(self.model, hidden, batch)
            total = torch.zeros((), device=self._device)
            for level, targets in zip(logits, batch.levels, strict=True):
                total = total + soft_cross_entropy(level, targets.target)
            if len(batch.text_position):
                states = batch.states(hidden, batch.text_position)
                text = text_loss(states, self.model.lm_head.weight, batch.text_target)
                total = total + TEXT_LOSS_WEIGHT * text
        return total


def _projection(source: int, target: int, seed: int) -> FloatArray:
    """(source, target): identity when the sizes agree, else a seeded random projection."""
    if source == target:
        return np.eye(source, dtype=np.float32)
    random = np.random.default_rng(seed)
    return random.normal(0, target**-0.5, (source, target)).astype(np.float32)
