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

Cost. Teacher: a forward pass without a graph. R-Drop: another one, since it is differentiated by
the first pass only, twice. The two passes are drawn alike, so ∂/∂(first) and ∂/∂(second) have the
same mean, and 2·∂/∂(first) is an unbiased estimate of the whole gradient. It joins that of L_CE and
L_KL in one backward pass over the weights. g, which is without R-Drop, is the gradient by the
embeddings only: no weight's is computed for it, and without R-Drop it is a by-product.

    onesearch train distill DATASET SNAPSHOT CHECKPOINT --init CHECKPOINT --keywords FILE
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from index.codec import Codec
from index.errors import ConfigError
from models.dropout import Dropout
from models.rows import Frame
from models.tokenizer import Tokenizer
from models.training import adversarial, loop, parallel, slopes
from models.training.batches import PairBatch, PairBatches
from models.training.curriculum import Curriculum, Mixture
from models.training.examples import PackedBatch
from models.training.loop import LoopResult, Progress, Schedule, StepResult
from models.training.losses import FOCAL_GAMMA, FOCAL_WEIGHT
from models.training.readout import Readout
from models.training.slopes import Distribution, Taught
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


class _Shared(NamedTuple):
    """Of the students' rows, whatever the pass."""

    frame: Frame
    priors: list[torch.Tensor]


class _Pass(NamedTuple):
    """L_CE and L_KL; the embeddings (R, T, d) that went in; per level the logits that came out,
    their distribution, and the gradient of L_CE + α_KL·L_KL by them."""

    ce: torch.Tensor
    kl: torch.Tensor
    inputs: torch.Tensor
    logits: list[torch.Tensor]
    held: list[Distribution]
    slopes: list[torch.Tensor]


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
        weights_type = next(model.parameters()).dtype
        self._compute_type = torch.bfloat16 if autocast else weights_type
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
        teacher = self._teach(pair) if settings.kl_weight else None
        shared = self._shared(student)
        # The passes' gradients by the embeddings are added up and go to the table once.
        looked_up = self.model.embed(student.token_ids)
        embeddings = looked_up.detach().to(self._compute_type)
        clean = self._passed(pair, teacher, embeddings, self._dropout(number, _CLEAN), shared)
        by_logits, gradient = clean.slopes, None
        r_drop = adverse = torch.zeros((), device=self._device)
        if settings.r_drop_weight:
            r_drop, apart = self._apart(clean, student, embeddings, number, shared)
            if settings.adversarial_epsilon:
                (gradient,) = torch.autograd.grad(
                    clean.logits, clean.inputs, clean.slopes, retain_graph=True
                )
            by_logits = [one + other for one, other in zip(clean.slopes, apart, strict=True)]
        torch.autograd.backward(clean.logits, by_logits)
        assert clean.inputs.grad is not None
        total = clean.inputs.grad.to(looked_up.dtype, copy=True)
        if settings.adversarial_epsilon:
            moved = embeddings + adversarial.perturbation(
                clean.inputs.grad if gradient is None else gradient,
                student.segment,
                student.examples,
                settings.adversarial_epsilon,
            )
            again = self._passed(pair, teacher, moved, self._dropout(number, _ADVERSARIAL), shared)
            torch.autograd.backward(again.logits, again.slopes)
            assert again.inputs.grad is not None
            total += again.inputs.grad
            adverse = again.ce + settings.kl_weight * again.kl
        torch.autograd.backward(looked_up, total)
        return Terms(clean.ce, clean.kl, r_drop, adverse)

    def _passed(
        self,
        pair: PairBatch,
        teacher: list[Taught] | None,
        embeddings: torch.Tensor,
        dropout: Dropout | None,
        shared: _Shared,
    ) -> _Pass:
        """A pass with L_CE + α_KL·L_KL."""
        settings, student = self._settings, pair.student
        inputs = embeddings.detach().requires_grad_()
        logits = self._logits(student, inputs, dropout, shared=shared)
        held = [slopes.distribution(level) for level in logits]
        fits = [
            slopes.fit(
                level,
                own,
                targets.target,
                teacher[number] if teacher else None,
                focal=(settings.focal_weight, settings.focal_gamma) if settings.focal else None,
                kl_weight=settings.kl_weight,
                temperature=settings.temperature,
            )
            for number, (level, own, targets) in enumerate(
                zip(logits, held, student.levels, strict=True)
            )
        ]
        ce, kl = (torch.stack([fit[term] for fit in fits]).sum() for term in range(2))
        by_logits = [fit.slope.to(level.dtype) for fit, level in zip(fits, logits, strict=True)]
        return _Pass(ce, kl, inputs, logits, held, by_logits)

    @torch.no_grad()
    def _apart(
        self,
        clean: _Pass,
        student: PackedBatch,
        embeddings: torch.Tensor,
        number: int,
        shared: _Shared,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """R-Drop's term by a second pass, and the gradient of twice that, times α_R, by the first
        one's logits."""
        again = self._logits(student, embeddings, self._dropout(number, _SECOND), shared=shared)
        terms = [
            slopes.apart(slopes.distribution(level), own)
            for level, own in zip(again, clean.held, strict=True)
        ]
        twice = 2 * self._settings.r_drop_weight
        by_logits = [
            (slope * twice).to(level.dtype) for (_, slope), level in zip(terms, again, strict=True)
        ]
        return torch.stack([value for value, _ in terms]).sum(), by_logits

    @torch.no_grad()
    def _teach(self, pair: PairBatch) -> list[Taught] | None:
        """What the teacher says at the students' points, per level; None where no example has
        keywords."""
        teacher = self.others.get("teacher", self.model)
        assert isinstance(teacher, Qwen3)
        if not pair.teacher.examples:
            return None
        logits = self._logits(pair.teacher, None, None, teacher)
        return [
            slopes.taught(level, points, len(targets.position), self._settings.temperature)
            for level, points, targets in zip(logits, pair.taught, pair.student.levels, strict=True)
        ]

    def _shared(self, batch: PackedBatch) -> _Shared:
        frame = self.model.frame(batch.position_ids, batch.mask, self._compute_type)
        with self._narrow():
            return _Shared(frame, self._readout.priors(batch))

    def _logits(
        self,
        batch: PackedBatch,
        embeddings: torch.Tensor | None,
        dropout: Dropout | None,
        model: Qwen3 | None = None,
        *,
        shared: _Shared | None = None,
    ) -> list[torch.Tensor]:
        model = model or self.model
        # Each pass has a context of its own: weights that were cast without a graph are not kept.
        with self._narrow():
            hidden = model.hidden(
                batch.token_ids,
                batch.position_ids,
                batch.mask,
                embeddings,
                points=batch.points,
                dropout=dropout,
                frame=shared and shared.frame,
            )
            return self._readout.level_logits(model, hidden, batch, shared and shared.priors)

    def _narrow(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast)

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
