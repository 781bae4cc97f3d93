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

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from index.codec import Codec
from index.encoder import TextEncoder
from index.errors import ConfigError
from models.tokenizer import Tokenizer
from models.training import state
from models.training.curriculum import Curriculum, Mixture
from models.training.examples import ExampleSet, PackedBatch, pack
from models.training.losses import level_loss, text_loss
from models.transformer import Qwen3, Qwen3Config

FloatArray = NDArray[np.float32]
WARMUP_STEPS = 100
TEXT_LOSS_WEIGHT = 0.2
SID_OUTPUT_SCALE = 0.02
EPOCHS_PER_CHUNK = 2


@dataclass(frozen=True, slots=True)
class SftSettings:
    """Model shape and optimisation. `examples`: how many are seen in all, repeats included."""

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
    row_length: int = 64
    paths: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    max_minutes: float | None = None
    save_every_s: float = 60.0
    device: str = "cpu"
    seed: int = 7
    mixture: Mixture = field(default_factory=Mixture)

    @property
    def step_examples(self) -> int:
        """Examples of one optimiser step."""
        return self.batch_examples * self.accumulate

    def fingerprint(self, *parents: str) -> str:
        """Digest of everything that decides the result, for resuming."""
        facts = asdict(self)
        facts.pop("save_every_s")
        facts.pop("device")
        text = json.dumps([facts, parents], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Progress(NamedTuple):
    """One step's report: step and plan, mean loss, examples a second, seconds left, stage."""

    step: int
    planned_steps: int
    loss: float
    examples_per_s: float
    left_s: float
    stage: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class SftResult:
    """What training did, for the checkpoint's metrics."""

    steps: int
    examples: int
    seconds: float
    loss: float
    examples_per_s: float


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
) -> SftResult:
    """Train `model` in place; resumes from `state_directory` when it holds a matching state."""
    if settings.batch_examples > settings.chunk_examples:
        raise ConfigError("batch_examples must not exceed chunk_examples")
    trainer = _Trainer(model, curriculum, tokenizer, codec, settings)
    found = state.load(state_directory, model, trainer.optimiser, fingerprint)
    clock = _Clock(settings, found or state.Counters(0, 0.0, fingerprint))
    last_save = time.monotonic()
    loss = float("nan")
    while (progress := clock.progress) < 1:
        stage = settings.mixture.stage_of(progress)
        rate = settings.learning_rate * min(1.0, (clock.step + 1) / WARMUP_STEPS) * (1 - progress)
        loss = trainer.step(clock.step, stage, rate)
        clock.tick()
        if report is not None:
            report(
                Progress(
                    clock.step, clock.planned, loss, clock.examples_per_s, clock.left_s, stage, rate
                )
            )
        if time.monotonic() - last_save > settings.save_every_s:
            counters = state.Counters(clock.step, clock.elapsed_s, fingerprint)
            state.save(state_directory, model, trainer.optimiser, counters)
            last_save = time.monotonic()
    examples = clock.step * settings.step_examples
    per_s = examples / max(clock.elapsed_s, 1e-9)
    return SftResult(clock.step, examples, clock.elapsed_s, loss, per_s)


class _Clock:
    """How far training is: by examples and, with a budget, by time, whichever is further.

    The learning rate and the stages follow this progress, so a budget always ends at rate zero,
    however unevenly the machine runs. Without a budget nothing depends on time.
    """

    def __init__(self, settings: SftSettings, found: state.Counters) -> None:
        self.step = found.step
        self._settings = settings
        self._total = max(1, settings.examples // settings.step_examples)
        self._budget_s = settings.max_minutes * 60 if settings.max_minutes else math.inf
        self._before_s = found.elapsed_s
        self._started = self._mark = time.monotonic()
        self._first = found.step
        self._step_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, earlier runs of a resumed one included."""
        return self._before_s + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """Share of the training done, in [0, 1]."""
        by_time = self.elapsed_s / self._budget_s if self._budget_s < math.inf else 0.0
        return min(1.0, max(self.step / self._total, by_time))

    @property
    def left_s(self) -> float:
        """Seconds left at the recent speed."""
        by_examples = (self._total - self.step) * self._step_s
        return max(0.0, min(by_examples, self._budget_s - self.elapsed_s))

    @property
    def planned(self) -> int:
        """Steps in all, as far as can be told now."""
        if self.progress >= 1:
            return self.step
        return self.step + max(1, round(self.left_s / max(self._step_s, 1e-9)))

    @property
    def examples_per_s(self) -> float:
        return self._settings.step_examples / max(self._step_s, 1e-9)

    def tick(self) -> None:
        """A step is done."""
        now = time.monotonic()
        duration, self._mark = now - self._mark, now
        self.step += 1
        done = self.step - self._first
        mean = (now - self._started) / done
        self._step_s = mean if done < 20 else 0.95 * self._step_s + 0.05 * duration


class _Trainer:
    """Model, optimiser and the current chunk."""

    def __init__(
        self,
        model: Qwen3,
        curriculum: Curriculum,
        tokenizer: Tokenizer,
        codec: Codec,
        settings: SftSettings,
    ) -> None:
        self._device = torch.device(settings.device)
        self._model = model.train().to(self._device)
        self._curriculum = curriculum
        self._settings = settings
        self._slices = [tokenizer.level_slice(level) for level in range(codec.layout.levels)]
        self._level_sizes = codec.layout.level_sizes
        self._sid_offset = tokenizer.sid_offset
        self._centroids = [torch.tensor(level, device=self._device) for level in codec.centroids]
        decayed = [p for p in model.parameters() if p.dim() > 1]
        plain = [p for p in model.parameters() if p.dim() <= 1]
        groups = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True
        )
        self._chunk: tuple[int, int] | None = None
        self._examples: ExampleSet | None = None
        self._longest = 0

    def step(self, step: int, stage: int, rate: float) -> float:
        """One optimiser step; returns the loss (a host sync, once a step)."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        total = 0.0
        for part in range(self._settings.accumulate):
            batch = self._batch(step * self._settings.accumulate + part, stage)
            loss = self._loss(batch) / self._settings.accumulate
            torch.autograd.backward(loss)
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return total

    def _batch(self, number: int, stage: int) -> PackedBatch:
        """Batch `number`: a function of (seed, number, stage) only."""
        settings = self._settings
        per_epoch = settings.chunk_examples // settings.batch_examples
        chunk, place = divmod(number, per_epoch * EPOCHS_PER_CHUNK)
        if self._chunk != (chunk, stage):
            self._examples = self._curriculum.chunk(chunk, stage)
            self._chunk = (chunk, stage)
            path_tokens = settings.paths * (len(self._level_sizes) - 1)
            self._longest = self._examples.longest(path_tokens)
        assert self._examples is not None
        epoch, within = divmod(place, per_epoch)
        order = np.random.default_rng([settings.seed, 1, chunk, epoch]).permutation(
            len(self._examples)
        )
        chosen = order[within * settings.batch_examples : (within + 1) * settings.batch_examples]
        return pack(
            self._examples,
            chosen,
            level_sizes=self._level_sizes,
            sid_offset=self._sid_offset,
            row_length=max(settings.row_length, self._longest),
            paths=settings.paths,
            random=np.random.default_rng([settings.seed, 2, number]),
        ).to(self._device)

    def _loss(self, batch: PackedBatch) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16):
            hidden = self._model.hidden(batch.token_ids, batch.position_ids, batch.mask)
            flat = hidden.flatten(0, 1)
            output = self._model.lm_head.weight
            total = torch.zeros((), device=self._device)
            for level, targets in enumerate(batch.levels):
                prior = None
                if self._settings.prior_beta > 0:
                    scores = batch.embeddings @ self._centroids[level].T
                    prior = self._settings.prior_beta * scores.float()[targets.example]
                points = flat.index_select(0, targets.position)
                total = total + level_loss(
                    points, output[self._slices[level]], targets.target, prior
                )
            if len(batch.text_position):
                states = flat.index_select(0, batch.text_position)
                weight = TEXT_LOSS_WEIGHT
                total = total + weight * text_loss(states, output, batch.text_target)
        return total


def _projection(source: int, target: int, seed: int) -> FloatArray:
    """(source, target): identity when the sizes agree, else a seeded random projection."""
    if source == target:
        return np.eye(source, dtype=np.float32)
    random = np.random.default_rng(seed)
    return random.normal(0, target**-0.5, (source, target)).astype(np.float32)
