"""`bench train`: one optimiser step of every kind of training, beside a plain fine-tuning step.

Made-up examples of the lengths that a shop's searches have (14 tokens of prompt, two SIDs each),
the default decoder of `onesearch train`, bf16 products. Steps of all kinds take turns. A step is
all but the making of examples: packing, passes, clipping, the optimiser. Rollouts of alignment are
timed alone: 16 of each of 128 prompts, over 100,000 legal SIDs.

Share of the peak: arithmetic that somebody needs (of the last layer, keys and values of all tokens,
the rest of prediction points only; attention over visible pairs), three times for a pass with its
gradient, over the measured peak of square bf16 products. "in full" counts every token through every
layer, as figures elsewhere do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.engine import Prompt
from decoding.weights import DecoderWeights
from index.codec import Codec
from index.sid import SidLayout
from index.trie import Trie
from loadtest.bench.catalogues import random_keys
from loadtest.bench.report import Row, race, row
from loadtest.bench.roofline import gemm_peak
from models.tokenizer import Tokenizer
from models.training.batches import Batches, PairBatches
from models.training.curriculum import Pairs
from models.training.distill import DistillSettings, DistillStage
from models.training.example_set import ExampleSet
from models.training.examples import PackedBatch
from models.training.memory import keep_freed_memory
from models.training.rollout import sample_rollouts
from models.training.sft import SftSettings, SftStage
from models.transformer import Qwen3, Qwen3Config

LAYOUT = SidLayout((512, 64, 16))
DIMENSION = 256
PROMPT_TOKENS = (10, 19)
KEYWORD_TOKENS = (4, 13)
TARGETS = 32
PRIOR_BETA = 20.0
RATE = 1e-4
PLAIN = "fine-tuning"
ROUNDS = 9
BUDGET_S = 40.0
QUICK_EXAMPLES = 128
ROLLED_PROMPTS = 128
GROUP = 16
CATALOGUE_SIDS = 100_000

_OFF = DistillSettings(
    kl_weight=0.0, r_drop_weight=0.0, adversarial_epsilon=0.0, dropout=0.0, focal=False
)
LOSSES = {
    "focal": replace(_OFF, focal=True),
    "self-distillation": replace(_OFF, kl_weight=0.1),
    "R-Drop": replace(_OFF, r_drop_weight=0.5, dropout=0.1),
    "FGM": replace(_OFF, adversarial_epsilon=0.6),
    "all": DistillSettings(),
}


def rows(quick: bool, *, snapshot: Path | None = None, checkpoint: Path | None = None) -> list[Row]:
    """All kinds of steps."""
    del snapshot, checkpoint
    keep_freed_memory()
    bench = _Bench(QUICK_EXAMPLES if quick else SftSettings().batch_examples)
    steps = {PLAIN: bench.plain()} | {
        name: bench.distilled(settings) for name, settings in LOSSES.items()
    }
    found = race(steps, rounds=3 if quick else ROUNDS, budget_s=BUDGET_S, slice_s=0.0)
    peak = gemm_peak(torch.bfloat16, torch.get_num_threads())
    plain_s = float(np.median(found.seconds[PLAIN]))
    work = bench.work()
    made: list[Row] = []
    for name in steps:
        seconds = found.seconds[name]
        middle = float(np.median(seconds))
        setting = {"loss": name}
        made.append(row("training step", setting, found.scaled(name, 1e3), {}, "ms"))
        made.append(row("times a plain step", setting, middle / plain_s, {}, "×"))
    plain = {"loss": PLAIN}
    made.append(row("speed", plain | {"of": "examples"}, bench.examples / plain_s, {}, "a second"))
    made.append(row("speed", plain | {"of": "tokens"}, work.tokens / plain_s, {}, "a second"))
    for counted, flops in (("needed", work.needed), ("in full", work.full)):
        share = flops / plain_s / peak
        setting = {**plain, "arithmetic": counted}
        made.append(
            row(
                "share of the bf16 peak",
                setting,
                share,
                {},
                "of the peak",
                tflops=flops / plain_s / 1e12,
                peak_tflops=peak / 1e12,
            )
        )
    rolled = race({PLAIN: bench.rollouts()}, rounds=ROUNDS, budget_s=5.0, slice_s=0.0)
    seconds = float(np.median(rolled.seconds[PLAIN]))
    setting = {"of": "rollouts", "prompts": ROLLED_PROMPTS, "group": GROUP}
    made.append(row("speed", setting, ROLLED_PROMPTS * GROUP / seconds, {}, "a second"))
    return made


@dataclass(frozen=True, slots=True)
class Work:
    """Of one plain step: tokens without padding, operations that are needed, and in full."""

    tokens: int
    needed: float
    full: float


class _Bench:
    """Examples, model shape and stages."""

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self._settings = SftSettings(batch_examples=examples, chunk_examples=examples)
        random = np.random.default_rng(7)
        words = ["".join(random.choice(list("abcdefghij"), 5)) for _ in range(2000)]
        self._tokenizer = Tokenizer.train(words, 2048, layout=LAYOUT)
        centroids = tuple(
            (random.standard_normal((size, DIMENSION)) / DIMENSION).astype(np.float32)
            for size in LAYOUT.level_sizes
        )
        self._codec = Codec(LAYOUT, centroids, ("rq",) * LAYOUT.levels)
        self._pairs = self._make_pairs(random)

    def plain(self) -> Callable[[], object]:
        """A fine-tuning step."""
        batches = Batches(self._examples, self._tokenizer, self._settings)
        stage = SftStage(self._model(), batches, self._tokenizer, self._codec, self._settings)
        return _counted(lambda number: stage.step(number, 0.5, RATE))

    def distilled(self, settings: DistillSettings) -> Callable[[], object]:
        """A step of self-distillation."""
        settings = replace(settings, batch_examples=self.examples, chunk_examples=self.examples)
        batches = PairBatches(
            self._chunk, self._tokenizer, settings, with_teachers=settings.kl_weight > 0
        )
        stage = DistillStage(self._model(), batches, self._tokenizer, self._codec, settings)
        return _counted(lambda number: stage.step(number, 0.5, RATE))

    def rollouts(self) -> Callable[[], object]:
        """The groups of one alignment step, weights arranged anew as after an update."""
        model = self._model()
        trie = Trie.build(LAYOUT, random_keys(LAYOUT, CATALOGUE_SIDS))
        prompts = [
            Prompt(np.array(tokens, np.int32))
            for tokens in self._pairs.examples.prompts[:ROLLED_PROMPTS]
        ]
        numbers = iter(range(1 << 30))

        def roll() -> object:
            weights = DecoderWeights.from_state_dict(
                model.config.to_json(), model.state_dict(), LAYOUT, self._tokenizer.sid_offset
            )
            random = np.random.default_rng(next(numbers))
            return sample_rollouts(weights, trie, prompts, GROUP, random)

        return roll

    def work(self) -> Work:
        """Of a plain step."""
        batches = Batches(self._examples, self._tokenizer, self._settings)
        batch = batches.batch(0, 3)
        tokens = int((batch.segment >= 0).sum())
        points = len(torch.cat([level.position for level in batch.levels]).unique())
        return Work(tokens, self._flops(batch, tokens, points), self._flops(batch, tokens, tokens))

    def _examples(self, number: int, stage: int) -> ExampleSet:
        """The same chunk for ever."""
        del number, stage
        return self._pairs.examples

    def _chunk(self, number: int) -> Pairs:
        del number
        return self._pairs

    def _flops(self, batch: PackedBatch, tokens: int, points: int) -> float:
        """Forward and backward: three times the forward pass's multiplications and additions."""
        settings = self._settings
        width, head = settings.hidden_size, settings.head_dim
        key_values = 2 * width * settings.key_heads * head
        rest = 2 * width * settings.heads * head + 3 * width * settings.inner_size
        before = settings.layers - 1
        weights = before * (key_values + rest) * tokens + key_values * tokens + rest * points
        visible = int((batch.mask[:, 0] & (batch.segment >= 0)[:, None]).sum())
        attended = before * visible + visible * points / tokens
        outputs = sum(
            len(level.position) * size * width
            for level, size in zip(batch.levels, LAYOUT.level_sizes, strict=True)
        )
        return 3.0 * (2.0 * (weights + outputs) + 4.0 * settings.heads * head * attended)

    def _model(self) -> Qwen3:
        settings = self._settings
        config = Qwen3Config(
            vocab_size=self._tokenizer.size,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.inner_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.key_heads,
            head_dim=settings.head_dim,
        )
        return Qwen3(config).initialise(torch.Generator().manual_seed(7))

    def _make_pairs(self, random: np.random.Generator) -> Pairs:
        """Every example has keywords: the teacher's share at its most."""
        count, text_size = self.examples, self._tokenizer.text_size

        def tokens(limits: tuple[int, int]) -> list[int]:
            return random.integers(text_size, size=random.integers(*limits)).tolist()

        students = [tokens(PROMPT_TOKENS) for _ in range(count)]
        teachers = [[*prompt, *tokens(KEYWORD_TOKENS)] for prompt in students]
        codes = np.stack(
            [random.integers(size, size=(count, TARGETS)) for size in LAYOUT.level_sizes], axis=-1
        )
        weights: NDArray[np.float32] = random.dirichlet(np.ones(TARGETS), size=count).astype(
            np.float32
        )
        embeddings = random.standard_normal((count, DIMENSION)).astype(np.float32) / DIMENSION**0.5
        examples = ExampleSet(students, codes.astype(np.int32), weights, [()] * count, embeddings)
        return Pairs(examples, teachers, np.ones(count, np.bool_))


def _counted(step: Callable[[int], object]) -> Callable[[], object]:
    """Steps with numbers of their own, as in training."""
    numbers = iter(range(1 << 30))
    return lambda: step(next(numbers))
