"""The loop that every training stage runs in: how far, at which rate, saved, continued.

Training ends after a number of examples or with its time, whichever comes first. Without a budget
of time nothing here depends on a clock: step n of a continued run is step n of one that was left
alone, because a stage's step is a function of (weights, optimiser, seed, n).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from models.training import parallel, state

WARMUP_STEPS = 100
BETAS = (0.9, 0.98)
# Settings that change how a run goes, not where it ends.
_FREE_SETTINGS = ("save_every_s", "device")


@dataclass(frozen=True, slots=True)
class Schedule:
    """`examples` in all, `step_examples` of them a step; the peak of the learning rate."""

    examples: int
    step_examples: int
    learning_rate: float
    max_minutes: float | None = None
    save_every_s: float = 60.0
    warmup_steps: int = WARMUP_STEPS


class StepResult(NamedTuple):
    """What a step did: its loss, its stage, and what else is worth a line in the log."""

    loss: float
    stage: int
    measures: Mapping[str, float]


class Progress(NamedTuple):
    """One step's report: step and plan, mean loss, examples a second, seconds left, stage."""

    step: int
    planned_steps: int
    loss: float
    examples_per_s: float
    left_s: float
    stage: int
    learning_rate: float
    measures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class LoopResult:
    """What training did, for the checkpoint's metrics. `measures`: the last step's."""

    steps: int
    examples: int
    seconds: float
    loss: float
    examples_per_s: float
    measures: Mapping[str, float] = field(default_factory=dict[str, float])

    def metrics(self) -> dict[str, Any]:
        """Rounded, by name."""
        return {
            "steps": self.steps,
            "examples": self.examples,
            "train_s": round(self.seconds, 1),
            "examples_per_s": round(self.examples_per_s),
            "loss": round(self.loss, 4),
            **{name: round(value, 4) for name, value in self.measures.items()},
        }


class Stage(Protocol):
    """One kind of training. `others`: modules that belong to its state besides the model."""

    @property
    def model(self) -> torch.nn.Module: ...

    @property
    def optimiser(self) -> torch.optim.Optimizer: ...

    @property
    def others(self) -> Mapping[str, torch.nn.Module]: ...

    def step(self, number: int, progress: float, rate: float) -> StepResult:
        """Optimiser step `number` (from 0) at a share of the training done."""
        ...


def run(
    stage: Stage,
    schedule: Schedule,
    *,
    state_directory: Path,
    fingerprint: str,
    report: Callable[[Progress], None] | None = None,
) -> LoopResult:
    """Train to the end; resumes from `state_directory` when it holds a matching state."""
    found = state.load(state_directory, stage.model, stage.optimiser, fingerprint, stage.others)
    clock = _Clock(schedule, found or state.Counters(0, 0.0, fingerprint))
    last_save = time.monotonic()
    result = StepResult(float("nan"), 0, {})
    while (progress := parallel.agreed(clock.progress)) < 1:
        warm = min(1.0, (clock.step + 1) / schedule.warmup_steps)
        rate = schedule.learning_rate * warm * (1 - progress)
        result = stage.step(clock.step, progress, rate)
        clock.tick()
        if report is not None:
            report(clock.report(result, rate))
        if parallel.agreed(time.monotonic() - last_save) > schedule.save_every_s:
            counters = state.Counters(clock.step, clock.elapsed_s, fingerprint)
            state.save(state_directory, stage.model, stage.optimiser, counters, stage.others)
            last_save = time.monotonic()
    examples = clock.step * schedule.step_examples
    per_s = examples / max(clock.elapsed_s, 1e-9)
    return LoopResult(
        clock.step, examples, clock.elapsed_s, result.loss, per_s, dict(result.measures)
    )


def fingerprint(settings: Any, *parents: str) -> str:
    """Digest of everything that decides the result, for resuming; `settings`: a dataclass."""
    facts = {name: value for name, value in asdict(settings).items() if name not in _FREE_SETTINGS}
    text = json.dumps([facts, parents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_optimiser(
    model: torch.nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Fused AdamW; norms are not decayed."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)


def update(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer, rate: float, clip_norm: float
) -> None:
    """Clip the gradients, step at `rate`, forget the gradients."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


class _Clock:
    """How far training is: by examples and, with a budget, by time, whichever is further.

    The learning rate and the stages follow this progress, so a budget always ends at rate zero,
    however unevenly the machine runs. Without a budget nothing depends on time.
    """

    def __init__(self, schedule: Schedule, found: state.Counters) -> None:
        self.step = found.step
        self._schedule = schedule
        self._total = max(1, schedule.examples // schedule.step_examples)
        self._budget_s = schedule.max_minutes * 60 if schedule.max_minutes else math.inf
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
        return self._schedule.step_examples / max(self._step_s, 1e-9)

    def tick(self) -> None:
        """A step is done."""
        now = time.monotonic()
        duration, self._mark = now - self._mark, now
        self.step += 1
        done = self.step - self._first
        mean = (now - self._started) / done
        self._step_s = mean if done < 20 else 0.95 * self._step_s + 0.05 * duration

    def report(self, result: StepResult, rate: float) -> Progress:
        """The step that was done last."""
        return Progress(
            self.step,
            self.planned,
            result.loss,
            self.examples_per_s,
            self.left_s,
            result.stage,
            rate,
            result.measures,
        )
