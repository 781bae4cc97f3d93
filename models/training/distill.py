"""Self-distillation: the model without keywords learns from itself with keywords (METHOD §5).

    L      = L_CE + α_KL·L_KL + α_R·L_RDrop + L_adv
    L_CE   = cross-entropy on SID positions, or focal: −w(1−p)^γ·log p
    L_KL   = τ²·KL(softmax(z_T/τ) ‖ softmax(z_S/τ))     teacher T: same weights (or their moving
                                                         average), prompt with keywords, no gradient
    L_RDrop = ½[KL(P₁‖P₂) + KL(P₂‖P₁)]                  two student passes, independent dropout
    L_adv  = L_CE + α_KL·L_KL at embeddings + δ,  δ = ε·g/‖g‖₂ per example,
             g = ∇(L_CE + α_KL·L_KL) by the input embeddings

Every term is switched off by its weight: α_KL, α_R, ε = 0; focal = False. Without α_KL no keywords
are needed. z carries the codebook
prior, on both sides. Terms are means over the positions of a level, summed over levels, so the
weights stand to each other as in the formula. L_CE and L_KL are those of the first pass. The
teacher runs without dropout, and only where a query has keywords: L_KL is the mean over those.

Cost. Teacher: a forward pass without a graph. g is a by-product of the first pass's backward pass,
because R-Drop's gradient is not in it: R-Drop is differentiated by the second pass only, twice. The
two passes are drawn alike, so ∂/∂(first) and ∂/∂(second) have the same mean, and 2·∂/∂(second) is
an unbiased estimate of the whole gradient, one backward pass cheaper.

    onesearch train distill DATASET SNAPSHOT CHECKPOINT --init CHECKPOINT --keywords FILE
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from index.codec import Codec
from index.errors import ConfigError
from models.dropout import Dropout
from models.tokenizer import Tokenizer
from models.training import adversarial, loop, parallel
from models.training.batches import PairBatch, PairBatches
from models.training.curriculum import Curriculum, Mixture
from models.training.examples import PackedBatch
from models.training.loop import LoopResult, Progress, Schedule, StepResult
from models.training.losses import (
    FOCAL_GAMMA,
    FOCAL_WEIGHT,
    focal_loss,
    forward_kl,
    soft_cross_entropy,
    symmetric_kl,
)
from models.training.readout import Readout
from models.transformer import Qwen3

KL_WEIGHT = 0.1
R_DROP_WEIGHT = 0.5
DROPOUT = 0.1
_STAGE = 3
_CLEAN, _SECOND, _ADVERSARIAL = 0, 1, 2


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """Components and optimisation. `ema_decay`: of a moving-average teacher, 0 for the weights as
    they are (published alternative: 0.9). `prior_beta` must be the checkpoint's."""

    kl_weight: float = KL_WEIGHT
    temperature: float = 1.0
    ema_decay: float = 0.0
    r_drop_weight: float = R_DROP_WEIGHT
    dropout: float = DROPOUT
    adversarial_epsilon: float = adversarial.EPSILON
    focal: bool = True
    focal_weight: float = FOCAL_WEIGHT
    focal_gamma: float = FOCAL_GAMMA
    prior_beta: float = 20.0
    examples: int = 500_000
    batch_examples: int = 1024
    chunk_examples: int = 16_384
    row_length: int = 0
    paths: int = 2
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    warmup_steps: int = 20
    max_minutes: float | None = None
    save_every_s: float = 60.0
    recompute: bool = False
    device: str = "cpu"
    seed: int = 7
    mixture: Mixture = field(default_factory=lambda: Mixture(pseudo_share=0.5, thought_tasks=()))

    def __post_init__(self) -> None:
        if self.r_drop_weight > 0 and self.dropout <= 0:
            raise ConfigError("R-Drop compares two passes under dropout; dropout must be above 0")
        if self.temperature <= 0:
            raise ConfigError(f"temperature is {self.temperature}, it must be above 0")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}, it must be in [0, 1)")

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            self.examples,
            self.batch_examples,
            self.learning_rate,
            self.max_minutes,
            self.save_every_s,
            self.warmup_steps,
        )

    @property
    def components(self) -> dict[str, Any]:
        """What is switched on, for the checkpoint's manifest."""
        return {
            "self_distillation": self.kl_weight,
            "temperature": self.temperature,
            "ema_decay": self.ema_decay,
            "r_drop": self.r_drop_weight,
            "dropout": self.dropout,
            "fgm": self.adversarial_epsilon,
            "focal": [self.focal_weight, self.focal_gamma] if self.focal else None,
        }


def train(
    model: Qwen3,
    curriculum: Curriculum,
    tokenizer: Tokenizer,
    codec: Codec,
    settings: DistillSettings,
    *,
    state_directory: Path,
    fingerprint: str,
    report: Callable[[Progress], None] | None = None,
) -> LoopResult:
    """Train `model` in place; resumes from `state_directory` when it holds a matching state."""
    if settings.batch_examples > settings.chunk_examples:
        raise ConfigError("batch_examples must not exceed chunk_examples")
    batches = PairBatches(
        curriculum.pairs, tokenizer, settings, with_teachers=settings.kl_weight > 0
    )
    return loop.run(
        DistillStage(model, batches, tokenizer, codec, settings),
        settings.schedule,
        state_directory=state_directory,
        fingerprint=fingerprint,
        report=report,
    )


@dataclass(frozen=True, slots=True)
class Terms:
    """The loss's terms, unweighted scalars without gradient; 0 where switched off."""

    ce: torch.Tensor
    kl: torch.Tensor
    r_drop: torch.Tensor
    adversarial: torch.Tensor


class DistillStage:
    """Model, optimiser, batches, and a moving-average teacher where there is one."""

    def __init__(
        self,
        model: Qwen3,
        batches: PairBatches,
        tokenizer: Tokenizer,
        codec: Codec,
        settings: DistillSettings,
        *,
        autocast: bool = True,
    ) -> None:
        """`autocast` False: products in the weights' own type, for gradient checks."""
        self._device = torch.device(settings.device)
        self.model = model.train().to(self._device)
        self.model.recompute = settings.recompute
        self.others: dict[str, torch.nn.Module] = {}
        if settings.ema_decay:
            teacher = deepcopy(self.model).requires_grad_(False)
            parallel.shard(teacher)
            self.others["teacher"] = teacher
        parallel.shard(self.model)
        self.optimiser = loop.make_optimiser(model, settings.learning_rate, settings.weight_decay)
        self._settings = settings
        self._batches = batches
        self._autocast = autocast
        self._readout = Readout(tokenizer, codec, settings.prior_beta, self._device)

    def step(self, number: int, progress: float, rate: float) -> StepResult:
        """One optimiser step; reads the terms (a host sync, once a step)."""
        settings = self._settings
        terms = self.backward(self._batches.batch(number).to(self._device), number)
        loop.update(self.model, self.optimiser, rate, settings.clip_norm)
        self._follow()
        parts = torch.stack([terms.ce, terms.kl, terms.r_drop, terms.adversarial]).tolist()
        ce, kl, r_drop, adverse = parts
        loss = ce + settings.kl_weight * kl + settings.r_drop_weight * r_drop + adverse
        measures = {"ce": ce, "kl": kl, "r_drop": r_drop, "adversarial": adverse}
        return StepResult(loss, _STAGE, measures)

    def backward(self, pair: PairBatch, number: int) -> Terms:
        """Adds the gradient of the whole loss to the parameters'; `number` decides the dropout."""
        settings, student = self._settings, pair.student
        nothing = torch.zeros((), device=self._device)
        teacher = self._teach(pair.teacher) if settings.kl_weight else None
        embeddings = self.model.embed(student.token_ids)
        if settings.adversarial_epsilon:
            embeddings.retain_grad()
        first = self._logits(student, embeddings, self._dropout(number, _CLEAN))
        ce, kl = self._ce(first, student), self._kl(teacher, first, pair)
        torch.autograd.backward(ce + settings.kl_weight * kl)
        r_drop = nothing
        if settings.r_drop_weight:
            again = self.model.embed(student.token_ids)
            second = self._logits(student, again, self._dropout(number, _SECOND))
            held = [logits.detach() for logits in first]
            r_drop = _summed(symmetric_kl(*both) for both in zip(held, second, strict=True))
            torch.autograd.backward(2 * settings.r_drop_weight * r_drop)
        adverse = nothing
        if settings.adversarial_epsilon:
            assert embeddings.grad is not None
            adverse = self._adverse(pair, teacher, embeddings.grad, number)
        return Terms(ce.detach(), kl.detach(), r_drop.detach(), adverse.detach())

    def _adverse(
        self,
        pair: PairBatch,
        teacher: list[torch.Tensor] | None,
        gradient: torch.Tensor,
        number: int,
    ) -> torch.Tensor:
        """The two terms at moved embeddings, their gradient added to the parameters'."""
        settings, student = self._settings, pair.student
        moved = self.model.embed(student.token_ids) + adversarial.perturbation(
            gradient, student.segment, student.examples, settings.adversarial_epsilon
        )
        logits = self._logits(student, moved, self._dropout(number, _ADVERSARIAL))
        loss = self._ce(logits, student) + settings.kl_weight * self._kl(teacher, logits, pair)
        torch.autograd.backward(loss)
        return loss

    @torch.no_grad()
    def _teach(self, batch: PackedBatch) -> list[torch.Tensor]:
        """The teacher's logits, per level; of no rows where no example has keywords."""
        teacher = self.others.get("teacher", self.model)
        assert isinstance(teacher, Qwen3)
        if not batch.examples:
            return []
        return self._logits(batch, None, None, teacher)

    def _logits(
        self,
        batch: PackedBatch,
        embeddings: torch.Tensor | None,
        dropout: Dropout | None,
        model: Qwen3 | None = None,
    ) -> list[torch.Tensor]:
        model = model or self.model
        # Each pass has a context of its own: weights that were cast without a graph are not kept.
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            hidden = model.hidden(
                batch.token_ids,
                batch.position_ids,
                batch.mask,
                embeddings,
                points=batch.points,
                dropout=dropout,
            )
            return self._readout.level_logits(model, hidden, batch)

    def _ce(self, logits: list[torch.Tensor], batch: PackedBatch) -> torch.Tensor:
        settings = self._settings
        pairs = zip(logits, batch.levels, strict=True)
        if not settings.focal:
            return _summed(soft_cross_entropy(level, targets.target) for level, targets in pairs)
        return _summed(
            focal_loss(
                level, targets.target, weight=settings.focal_weight, gamma=settings.focal_gamma
            )
            for level, targets in pairs
        )

    def _kl(
        self, teacher: list[torch.Tensor] | None, student: list[torch.Tensor], pair: PairBatch
    ) -> torch.Tensor:
        if not teacher:
            return torch.zeros((), device=self._device)
        return _summed(
            forward_kl(taught, level[points], temperature=self._settings.temperature)
            for taught, level, points in zip(teacher, student, pair.taught, strict=True)
        )

    def _dropout(self, number: int, passed: int) -> Dropout | None:
        settings = self._settings
        if not settings.dropout:
            return None
        seed = (settings.seed, 5, number, passed, parallel.this_process().rank)
        return Dropout(settings.dropout, seed)

    @torch.no_grad()
    def _follow(self) -> None:
        """The moving average takes a step towards the weights."""
        teacher = self.others.get("teacher")
        if teacher is None:
            return
        share = 1 - self._settings.ema_decay
        for slow, fast in zip(teacher.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, share)


def _summed(terms: Any) -> torch.Tensor:
    return torch.stack(list(terms)).sum()
