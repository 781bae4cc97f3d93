"""Preference alignment: groups of sampled rollouts, rewarded by what people did (METHOD §6).

    TPMA-GRPO   −(1/G) Σ_i (1/L) Σ_l g_il · r_il · A_final,il        tpma.py, rewards.py
    GRPO        −(1/G) Σ_i (1/L) Σ_l r_il · A_item,i                 one advantage for all positions
    loss        that + 0.1 · CE(first target) [+ β · KL(π ‖ π_initial)],   r = π/π_old, no clipping

A step: P searches, G rollouts of each by the native engine with the weights as they are (in
memory), rewards, advantages normalised in the group, one update (or several: then π_old are the
probabilities before the first). π is the engines' scoring rule: the softmax over a level's whole
codebook, so rewarding legal codes also moves mass from illegal ones; rollouts are drawn from its
restriction to legal children. CE is the mean over the target's positions. In a packed row a
search's rollouts share its prompt, the first target is one more path.

The share of valid SIDs in *unconstrained* decoding is measured along the way: alignment is known to
squeeze it.

    onesearch train align DATASET SNAPSHOT CHECKPOINT --init CHECKPOINT
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.engine import Prompt
from index.errors import ConfigError
from index.snapshot import Snapshot
from models.tokenizer import Tokenizer
from models.training import loop, parallel
from models.training.episodes import Episodes
from models.training.example_set import ExampleSet
from models.training.examples import PackedBatch, pack_paths
from models.training.loop import LoopResult, Progress, Schedule, StepResult
from models.training.publishing import valid_rate, weights_of
from models.training.readout import Readout
from models.training.rewards import prefix_rewards
from models.training.rollout import Rollouts, sample_rollouts
from models.training.tpma import (
    ANCHOR_WEIGHT,
    ITEM_WEIGHT,
    grpo_advantages,
    policy_loss,
    reference_kl,
    tpma_advantages,
)
from models.transformer import Qwen3

Method = Literal["tpma", "grpo"]
_STAGE = 4


@dataclass(frozen=True, slots=True)
class AlignSettings:
    """Components and optimisation. `examples`: searches seen in all; `group`: rollouts of each.

    `strict_prefix`: positions behind a mismatch do not count. `updates`: per group of rollouts.
    `evaluate_every`: steps between measurements of the unconstrained valid rate, 0 for never.
    `prior_beta` must be the checkpoint's.
    """

    method: Method = "tpma"
    strict_prefix: bool = False
    item_weight: float = ITEM_WEIGHT
    anchor_weight: float = ANCHOR_WEIGHT
    reference_weight: float = 0.0
    group: int = 16
    temperature: float = 1.0
    updates: int = 1
    prior_beta: float = 20.0
    examples: int = 20_000
    batch_examples: int = 128
    row_length: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    warmup_steps: int = 10
    evaluate_every: int = 50
    max_minutes: float | None = None
    save_every_s: float = 60.0
    recompute: bool = False
    device: str = "cpu"
    seed: int = 7

    def __post_init__(self) -> None:
        if self.method not in ("tpma", "grpo"):
            raise ConfigError(f"method is {self.method!r}, it must be tpma or grpo")
        if self.group < 2:
            raise ConfigError(f"group is {self.group}; rollouts are compared, take 2 or more")
        if self.temperature <= 0 or self.updates < 1:
            raise ConfigError("temperature must be above 0 and updates at least 1")

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
            "method": self.method,
            "strict_prefix": self.strict_prefix,
            "item_weight": self.item_weight,
            "anchor": self.anchor_weight,
            "reference_kl": self.reference_weight,
            "group": self.group,
        }


def train(
    model: Qwen3,
    episodes: Episodes,
    tokenizer: Tokenizer,
    snapshot: Snapshot,
    settings: AlignSettings,
    *,
    state_directory: Path,
    fingerprint: str,
    held_out: Sequence[Prompt] = (),
    report: Callable[[Progress], None] | None = None,
) -> LoopResult:
    """Train `model` in place; resumes from `state_directory` when it holds a matching state.

    `held_out`: prompts for the unconstrained valid rate.
    """
    return loop.run(
        AlignStage(model, episodes, tokenizer, snapshot, settings, held_out=held_out),
        settings.schedule,
        state_directory=state_directory,
        fingerprint=fingerprint,
        report=report,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Rollouts with what they are worth: `paths` int64 (P, G + 1, L), the first target last;
    advantages float32 (P, G, L), gated; items float32 (P, G): R_item."""

    batch: PackedBatch
    paths: torch.Tensor
    advantages: torch.Tensor
    items: torch.Tensor
    hits: float


class AlignStage:
    """Model, optimiser, episodes, and the initial model where KL holds on to it."""

    def __init__(
        self,
        model: Qwen3,
        episodes: Episodes,
        tokenizer: Tokenizer,
        snapshot: Snapshot,
        settings: AlignSettings,
        *,
        held_out: Sequence[Prompt] = (),
        autocast: bool = True,
    ) -> None:
        """`autocast` False: products in the weights' own type, for gradient checks."""
        self._device = torch.device(settings.device)
        self.model = model.train().to(self._device)
        self.model.recompute = settings.recompute
        self._reference: Qwen3 | None = None
        if settings.reference_weight:
            self._reference = deepcopy(self.model).requires_grad_(False)
            parallel.shard(self._reference)
        parallel.shard(self.model)
        self.optimiser = loop.make_optimiser(model, settings.learning_rate, settings.weight_decay)
        # The initial model is not trained: whoever continues a run opens it again.
        self.others: dict[str, torch.nn.Module] = {}
        self._episodes = episodes
        self._tokenizer = tokenizer
        self._snapshot = snapshot
        self._settings = settings
        self._held_out = list(held_out)
        self._autocast = autocast
        self._readout = Readout(tokenizer, snapshot.codec, settings.prior_beta, self._device)

    def step(self, number: int, progress: float, rate: float) -> StepResult:
        """Roll out, reward, update; reads the losses (a host sync, once an update)."""
        settings = self._settings
        measures = self._evaluate(number)
        group = self.roll_out(number)
        old = reference = None
        if self._reference is not None:
            with torch.no_grad():
                reference = self.log_probability(group, self._reference)[:, :-1]
        loss = anchor = 0.0
        for _ in range(settings.updates):
            log_p = self.log_probability(group, self.model)
            old = log_p[:, :-1].detach() if old is None else old
            total, ce = self.loss(log_p, old, group.advantages, reference)
            torch.autograd.backward(total)
            loop.update(self.model, self.optimiser, rate, settings.clip_norm)
            loss, anchor = torch.stack([total.detach(), ce.detach()]).tolist()
        varied = (group.items.std(dim=1) > 0).float().mean()
        measures |= {
            "reward": float(group.items.mean()),
            "hits": group.hits,
            "groups_with_preference": float(varied),
            "anchor_ce": anchor,
        }
        return StepResult(loss, _STAGE, measures)

    def roll_out(self, number: int) -> Group:
        """Step `number`'s rollouts under the weights as they are, rewarded and packed."""
        settings = self._settings
        chosen = self._chosen(number)
        prompts, embeddings = self._episodes.prompts(chosen)
        drawn = sample_rollouts(
            weights_of(self.model, self._tokenizer, self._snapshot),
            self._snapshot.trie,
            prompts,
            settings.group,
            np.random.default_rng([settings.seed, 6, number, parallel.this_process().rank]),
            temperature=settings.temperature,
        )
        items = self._episodes.rewards(chosen, drawn.leaves)
        targets = self._episodes.targets(chosen)
        codes = torch.from_numpy(drawn.codes)
        if settings.method == "grpo":
            advantages = grpo_advantages(items, codes.shape[-1])
        else:
            prefix = prefix_rewards(
                codes, targets.codes, targets.known, strict=settings.strict_prefix
            )
            advantages = tpma_advantages(prefix, items, item_weight=settings.item_weight)
        hit = (codes[:, :, None] == targets.codes[:, None]).all(dim=-1) & targets.known[:, None]
        batch, paths = self._packed(prompts, embeddings, drawn, targets.codes[:, :1])
        return Group(
            batch.to(self._device),
            paths.to(self._device),
            advantages.to(self._device),
            items,
            float(hit.any(dim=-1).float().mean()),
        )

    def log_probability(self, group: Group, model: Qwen3) -> torch.Tensor:
        """log π of every code of every path under `model`, float32 (P, G + 1, L)."""
        batch, paths = group.batch, group.paths
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            hidden = model.hidden(
                batch.token_ids, batch.position_ids, batch.mask, points=batch.points
            )
            logits = self._readout.level_logits(model, hidden, batch)
        found: list[torch.Tensor] = []
        for level, scores in enumerate(logits):
            exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
            normalised = torch.log_softmax(exact, dim=-1)
            # Level 1 is predicted once a prompt, the others once a path.
            normalised = normalised.view(len(paths), -1, normalised.shape[-1])
            normalised = normalised.expand(-1, paths.shape[1], -1)
            found.append(normalised.gather(2, paths[:, :, level, None])[..., 0])
        return torch.stack(found, dim=-1)

    def loss(
        self,
        log_p: torch.Tensor,
        old: torch.Tensor,
        advantages: torch.Tensor,
        reference: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole loss, and its CE part unweighted. `log_p` (P, G + 1, L), the first target last;
        `old`, `advantages`, `reference` (P, G, L)."""
        settings = self._settings
        rollouts, ce = log_p[:, :-1], -log_p[:, -1].mean()
        total = policy_loss(rollouts, old, advantages) + settings.anchor_weight * ce
        if reference is not None:
            total = total + settings.reference_weight * reference_kl(rollouts, reference)
        return total, ce

    def _chosen(self, number: int) -> NDArray[np.int64]:
        """Episodes of step `number`: seeded permutations, one after the other."""
        settings, total = self._settings, len(self._episodes)
        process = parallel.this_process()
        places = number * settings.batch_examples + np.arange(settings.batch_examples)
        places = places[process.rank :: process.size]
        orders = {
            epoch: np.random.default_rng([settings.seed, 7, epoch]).permutation(total)
            for epoch in np.unique(places // total).tolist()
        }
        return np.array([orders[place // total][place % total] for place in places.tolist()])

    def _packed(
        self,
        prompts: Sequence[Prompt],
        embeddings: NDArray[np.float32],
        drawn: Rollouts,
        first_target: torch.Tensor,
    ) -> tuple[PackedBatch, torch.Tensor]:
        paths = np.concatenate([drawn.codes, first_target.numpy()], axis=1)
        count, width, levels = paths.shape
        examples = ExampleSet(
            [prompt.token_ids.tolist() for prompt in prompts],
            paths.astype(np.int32),
            np.full((count, width), 1 / width, np.float32),
            [()] * count,
            embeddings,
        )
        batch = pack_paths(
            examples,
            np.arange(count),
            np.tile(np.arange(width), (count, 1)),
            level_sizes=self._tokenizer.layout.level_sizes,
            sid_offset=self._tokenizer.sid_offset,
            row_length=max(self._settings.row_length, examples.longest(width * (levels - 1))),
            with_targets=False,
        )
        return batch, torch.from_numpy(paths)

    def _evaluate(self, number: int) -> dict[str, float]:
        every = self._settings.evaluate_every
        if not every or not self._held_out or number % every:
            return {}
        rate = valid_rate(self.model, self._tokenizer, self._snapshot, self._held_out)
        return {"unconstrained_valid_rate": rate}
