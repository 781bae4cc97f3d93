"""Trains the static two-tower (`index.encoder.StaticEncoder`).

    v(text)  = normalise( Σ_{tokens t of text} Σ_{buckets b of t} E[b] )
    L        = ½ [ CE(s·q_i·v_j) over items j + CE over queries ]   in-batch softmax, learned s
    masks    pairs that share the query or the item are no negatives of each other

A batch mixes behaviour pairs (judged or clicked, drawn by weight) with pseudo-queries. E starts
as a random projection scaled by each feature's idf, so that the untrained encoder is already a
lexical matcher. Deviations from the usual two-tower: one shared table; each distinct token's vector
is summed once a batch; only the rows that a batch touches are updated (Adam with a per-row second
moment), so a step costs what its vocabulary costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from index.encoder import StaticEncoder, text_tokens, token_buckets
from index.errors import ConfigError

IntArray = NDArray[np.int64]
WORD_SCALE = 1.0
GRAM_SCALE = 0.15
BIGRAM_SCALE = 0.5
BETA_1 = 0.9
BETA_2 = 0.99
EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """What shapes an encoder and its training."""

    dimension: int = 256
    bucket_count: int = 1 << 18
    batch: int = 1536
    steps: int = 600
    pseudo_share: float = 0.6
    learning_rate: float = 0.02
    scale_start: float = 20.0
    seed: int = 7

    def __post_init__(self) -> None:
        if self.bucket_count < 1 or self.bucket_count.bit_count() != 1:
            raise ConfigError(f"bucket_count {self.bucket_count} must be a power of two")
        if not 0 <= self.pseudo_share <= 1:
            raise ConfigError(f"pseudo_share {self.pseudo_share} must lie in [0, 1]")

    def with_steps(self, steps: int) -> EncoderSettings:
        return replace(self, steps=steps)


@dataclass(frozen=True, slots=True, eq=False)
class Bags:
    """Texts as bags of token ids: tokens of text i are ids[offsets[i]:offsets[i+1]]."""

    ids: IntArray
    offsets: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: IntArray) -> Bags:
        counts = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        starts = np.repeat(self.offsets[:-1][rows] - offsets[:-1], counts)
        return Bags(self.ids[starts + np.arange(offsets[-1])], offsets)


class Lexicon:
    """Token → id → buckets. Grows as texts are added."""

    def __init__(self, bucket_count: int) -> None:
        self.bucket_count = bucket_count
        self.id_of: dict[str, int] = {}
        self._buckets: list[IntArray] = []

    def add(self, texts: Sequence[str]) -> Bags:
        ids: list[int] = []
        offsets = [0]
        for text in texts:
            for token in text_tokens(text):
                position = self.id_of.get(token)
                if position is None:
                    position = self.id_of[token] = len(self._buckets)
                    buckets = token_buckets(token, self.bucket_count)
                    self._buckets.append(np.array(buckets, np.int64))
                ids.append(position)
            offsets.append(len(ids))
        return Bags(np.array(ids, np.int64), np.array(offsets, np.int64))

    def __len__(self) -> int:
        return len(self._buckets)

    def buckets_of(self, tokens: IntArray) -> Bags:
        """Buckets of each token id."""
        found = [self._buckets[token] for token in tokens.tolist()]
        counts = np.fromiter((len(b) for b in found), np.int64, len(found))
        flat = np.concatenate(found) if found else np.zeros(0, np.int64)
        return Bags(flat, np.concatenate([[0], np.cumsum(counts)]))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Behaviour pairs: query index, item row, sampling weight; all (P,)."""

    query: IntArray
    row: IntArray
    weight: NDArray[np.float64]


Progress = Callable[[int, int, float], None]


def train_encoder(
    item_texts: Sequence[str],
    queries: Sequence[str],
    pairs: Pairs,
    pseudo_sampler: Callable[[IntArray, np.random.Generator], list[str]],
    settings: EncoderSettings,
    progress: Progress | None = None,
) -> StaticEncoder:
    """Learn the table. `pseudo_sampler(rows, random)` gives one pseudo-query for each item row."""
    random = np.random.default_rng(settings.seed)
    lexicon = Lexicon(settings.bucket_count)
    item_bags = lexicon.add(item_texts)
    query_bags = lexicon.add(queries)
    table, first_moment, second_moment = _initial_table(lexicon, item_bags, settings)
    log_scale = torch.tensor(float(np.log(settings.scale_start)), requires_grad=True)
    scale_optimiser = torch.optim.Adam([log_scale], lr=0.01)
    share = pairs.weight / pairs.weight.sum() if len(pairs.weight) else None
    judged_count = int(settings.batch * (1 - settings.pseudo_share)) if share is not None else 0
    for step in range(settings.steps):
        chosen = (
            random.choice(len(pairs.row), size=judged_count, p=share)
            if share is not None
            else np.zeros(0, np.int64)
        )
        pseudo_rows = random.integers(len(item_texts), size=settings.batch - judged_count)
        pseudo_bags = lexicon.add(pseudo_sampler(pseudo_rows, random))
        rows = np.concatenate([pairs.row[chosen], pseudo_rows])
        query_ids = np.concatenate(
            [pairs.query[chosen], len(queries) + np.arange(len(pseudo_rows))]
        )
        left = _join(query_bags.take(pairs.query[chosen]), pseudo_bags)
        batch = _LocalBatch.build(lexicon, _join(left, item_bags.take(rows)))
        weights = table[batch.buckets].requires_grad_()
        vectors = batch.embed(weights)
        similarity = log_scale.exp() * (vectors[: len(rows)] @ vectors[len(rows) :].T)
        loss = _masked_in_batch_loss(similarity, query_ids, rows)
        loss.backward()
        rate = settings.learning_rate * (1 - step / settings.steps)
        assert weights.grad is not None
        _row_adam(table, first_moment, second_moment, batch.buckets, weights.grad, step, rate)
        scale_optimiser.step()
        scale_optimiser.zero_grad()
        if progress is not None:
            progress(step + 1, settings.steps, float(loss.detach()))
    return _quantise(table, lexicon, settings)


@dataclass(frozen=True, slots=True, eq=False)
class _LocalBatch:
    """A batch renumbered to its own distinct tokens and buckets."""

    buckets: torch.Tensor
    bucket_ids: torch.Tensor
    bucket_offsets: torch.Tensor
    token_ids: torch.Tensor
    token_offsets: torch.Tensor

    @classmethod
    def build(cls, lexicon: Lexicon, bags: Bags) -> _LocalBatch:
        tokens, token_ids = np.unique(bags.ids, return_inverse=True)
        all_buckets = lexicon.buckets_of(tokens)
        buckets, bucket_ids = np.unique(all_buckets.ids, return_inverse=True)
        return cls(
            torch.from_numpy(buckets),
            torch.from_numpy(bucket_ids),
            torch.from_numpy(all_buckets.offsets[:-1].copy()),
            torch.from_numpy(token_ids),
            torch.from_numpy(bags.offsets[:-1].copy()),
        )

    def embed(self, weights: torch.Tensor) -> torch.Tensor:
        """Unit vectors of the texts, float32 (texts, d)."""
        tokens = functional.embedding_bag(self.bucket_ids, weights, self.bucket_offsets, mode="sum")
        texts = functional.embedding_bag(self.token_ids, tokens, self.token_offsets, mode="sum")
        return functional.normalize(texts, dim=1, eps=1e-6)


def _join(first: Bags, second: Bags) -> Bags:
    offsets = np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]])
    return Bags(np.concatenate([first.ids, second.ids]), offsets)


def _masked_in_batch_loss(
    similarity: torch.Tensor, query_ids: IntArray, rows: IntArray
) -> torch.Tensor:
    """Symmetric cross-entropy on the diagonal of (B, B); same query or same item is masked out."""
    same = (query_ids[:, None] == query_ids) | (rows[:, None] == rows)
    np.fill_diagonal(same, False)
    logits = similarity.masked_fill(torch.from_numpy(same), float("-inf"))
    target = torch.arange(len(rows))
    return 0.5 * (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    )


def _initial_table(
    lexicon: Lexicon, item_bags: Bags, settings: EncoderSettings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random rows scaled by idf (over items) and by feature kind, with empty Adam moments."""
    tokens = np.arange(len(lexicon))
    bags = lexicon.buckets_of(tokens)
    frequency = np.zeros(settings.bucket_count)
    token_frequency = np.bincount(item_bags.ids, minlength=len(lexicon))
    np.add.at(frequency, bags.ids, np.repeat(token_frequency, np.diff(bags.offsets)))
    idf = np.log1p(len(item_bags) / (1.0 + frequency))
    kind = np.full(settings.bucket_count, GRAM_SCALE)
    kind[bags.ids[bags.offsets[:-1]]] = WORD_SCALE
    is_bigram = np.diff(bags.offsets) == 1
    kind[bags.ids[bags.offsets[:-1][is_bigram]]] = BIGRAM_SCALE
    generator = torch.Generator().manual_seed(settings.seed)
    table = torch.randn(settings.bucket_count, settings.dimension, generator=generator)
    scale = idf * kind / idf.max() / settings.dimension**0.5
    table *= torch.from_numpy(scale).float()[:, None]
    return table, torch.zeros_like(table), torch.zeros(settings.bucket_count)


def _row_adam(
    table: torch.Tensor,
    first_moment: torch.Tensor,
    second_moment: torch.Tensor,
    rows: torch.Tensor,
    gradient: torch.Tensor,
    step: int,
    rate: float,
) -> None:
    """Adam on the touched rows; one second moment a row (mean square of its gradient)."""
    momentum = first_moment[rows].mul_(BETA_1).add_(gradient, alpha=1 - BETA_1)
    first_moment[rows] = momentum
    square = second_moment[rows].mul_(BETA_2).add_(gradient.square().mean(1), alpha=1 - BETA_2)
    second_moment[rows] = square
    correction = (1 - BETA_2 ** (step + 1)) ** 0.5 / (1 - BETA_1 ** (step + 1))
    scale = -rate * correction / (square.sqrt() + EPSILON)
    table.index_add_(0, rows, momentum.mul_(scale[:, None]))


def _quantise(table: torch.Tensor, lexicon: Lexicon, settings: EncoderSettings) -> StaticEncoder:
    """Keep the rows that some token uses."""
    used = np.unique(lexicon.buckets_of(np.arange(len(lexicon))).ids)
    row_of_bucket = np.full(settings.bucket_count, -1, np.int32)
    row_of_bucket[used] = np.arange(len(used))
    return StaticEncoder.from_table(table[torch.from_numpy(used)].numpy(), row_of_bucket)
