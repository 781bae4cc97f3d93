from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index.encoder import StaticEncoder, text_tokens, token_buckets
from index.errors import ConfigError
from models.training.encoder import (
    Bags,
    EncoderSettings,
    Lexicon,
    Pairs,
    _LocalBatch,
    _masked_in_batch_loss,
    _row_adam,
    train_encoder,
)

BUCKETS = 1 << 12
TOPICS = 20
SETTINGS = EncoderSettings(dimension=32, bucket_count=BUCKETS, batch=64, steps=60)


class Catalogue:
    """200 items of 20 topics. Titles name a topic in one vocabulary, queries in another, so that
    words alone find nothing: only training can connect them."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        made = [self._word(random) for _ in range(4 * TOPICS)]
        self.topic = np.repeat(np.arange(TOPICS), 10)
        own = [self._word(random) for _ in range(200)]
        self.texts = [f"{own[i]} {made[t]} {made[t + TOPICS]}" for i, t in enumerate(self.topic)]
        self.queries = [f"{made[t + 2 * TOPICS]} {made[t + 3 * TOPICS]}" for t in range(TOPICS)]
        rows = np.arange(200).reshape(TOPICS, 10)[:, :4].reshape(-1)
        self.pairs = Pairs(np.repeat(np.arange(TOPICS), 4), rows, np.ones(len(rows)))

    @staticmethod
    def _word(random: np.random.Generator) -> str:
        return "".join(random.choice(list("abcdefghijklmnopqrt"), 7))

    def sample(self, rows: np.ndarray, random: np.random.Generator) -> list[str]:
        return [" ".join(random.permutation(self.texts[row].split())[:2]) for row in rows]

    def recall(self, encoder: StaticEncoder) -> float:
        """Share of each topic's untrained items among its query's ten best."""
        similarity = encoder.encode(self.queries) @ encoder.encode(self.texts).T
        best = np.argsort(-similarity, axis=1)[:, :10]
        unseen = [np.flatnonzero(self.topic == t)[4:] for t in range(TOPICS)]
        return float(np.mean([np.isin(unseen[t], best[t]).mean() for t in range(TOPICS)]))

    def train(self, made: EncoderSettings, pairs: Pairs | None = None) -> StaticEncoder:
        chosen = self.pairs if pairs is None else pairs
        return train_encoder(self.texts, self.queries, chosen, self.sample, made)


CATALOGUE = Catalogue()
NO_PAIRS = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def test_training_connects_two_vocabularies():
    untrained = CATALOGUE.recall(CATALOGUE.train(SETTINGS.with_steps(0)))
    trained = CATALOGUE.recall(CATALOGUE.train(SETTINGS))
    assert untrained < 0.2
    assert trained > 0.8


def test_the_untrained_table_is_a_lexical_matcher():
    encoder = CATALOGUE.train(SETTINGS.with_steps(0))
    texts = encoder.encode(CATALOGUE.texts)
    own = encoder.encode([text.split()[0] for text in CATALOGUE.texts])
    assert (np.argmax(own @ texts.T, axis=1) == np.arange(200)).mean() > 0.8


def test_the_same_seed_gives_the_same_bytes():
    short = SETTINGS.with_steps(5)
    first, second = CATALOGUE.train(short), CATALOGUE.train(short)
    assert first.table.tobytes() == second.table.tobytes()
    assert first.scale.tobytes() == second.scale.tobytes()
    other = CATALOGUE.train(EncoderSettings(32, BUCKETS, 64, 5, seed=8))
    assert other.table.tobytes() != first.table.tobytes()


def test_without_pairs_pseudo_queries_do():
    seen: list[int] = []
    encoder = train_encoder(
        CATALOGUE.texts,
        [],
        NO_PAIRS,
        lambda rows, random: seen.append(len(rows)) or CATALOGUE.sample(rows, random),
        SETTINGS.with_steps(3),
    )
    assert seen == [64] * 3
    np.testing.assert_allclose(
        np.linalg.norm(encoder.encode(CATALOGUE.texts), axis=1), 1, atol=1e-5
    )


def test_texts_without_words_do_no_harm():
    encoder = train_encoder(
        ["", "!!!"], [""], Pairs(np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1)),
        lambda rows, random: [""] * len(rows), SETTINGS.with_steps(2),
    )  # fmt: skip
    assert not encoder.encode(["", "desk"]).any()


def test_only_buckets_in_use_are_kept():
    encoder = CATALOGUE.train(SETTINGS.with_steps(0))
    texts = [*CATALOGUE.texts, *CATALOGUE.queries]
    used = {
        b for text in texts for token in text_tokens(text) for b in token_buckets(token, BUCKETS)
    }
    assert set(np.flatnonzero(encoder.row_of_bucket >= 0).tolist()) == used
    assert len(encoder.table) == len(used)


def test_progress_counts_the_steps():
    told: list[tuple[int, int]] = []
    train_encoder(
        CATALOGUE.texts,
        CATALOGUE.queries,
        CATALOGUE.pairs,
        CATALOGUE.sample,
        SETTINGS.with_steps(3),
        lambda done, total, loss: told.append((done, total)) if loss > 0 else None,
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_training_and_serving_embed_alike():
    """The batch's summed bags are the vectors that the saved encoder gives (before int8)."""
    texts = ["red oak desk", "", "desk", "oak red desk desk"]
    lexicon = Lexicon(BUCKETS)
    bags = lexicon.add(texts)
    table = torch.randn(BUCKETS, 8, generator=torch.Generator().manual_seed(0))
    batch = _LocalBatch.build(lexicon, bags)
    trained = batch.embed(table[batch.buckets]).numpy()
    served = StaticEncoder.from_table(table.numpy(), np.arange(BUCKETS)).encode(texts)
    np.testing.assert_allclose(trained, served, atol=0.02)
    assert not trained[1].any()


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=6), st.data())
def test_take_is_indexing(bags: list[list[int]], data: st.DataObject):
    offsets = np.concatenate([[0], np.cumsum([len(bag) for bag in bags])]).astype(np.int64)
    packed = Bags(np.array([token for bag in bags for token in bag], np.int64), offsets)
    rows = data.draw(st.lists(st.integers(0, len(bags) - 1), max_size=8))
    taken = packed.take(np.array(rows, np.int64))
    found = [taken.ids[a:b].tolist() for a, b in pairwise(taken.offsets)]
    assert found == [bags[row] for row in rows]


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_in_batch_loss_leaves_out_what_belongs_together(pairs: list[tuple[int, int]], seed: int):
    """Oracle: for each pair the cross-entropy over itself and the pairs that share nothing."""
    count = len(pairs)
    scores = torch.randn(count, count, generator=torch.Generator().manual_seed(seed)).double()
    total = 0.0
    for matrix in (scores, scores.T):
        for i, (query, row) in enumerate(pairs):
            others = [j for j in range(count) if pairs[j][0] != query and pairs[j][1] != row]
            allowed = matrix[i, [i, *others]]
            total += float(torch.logsumexp(allowed, 0) - matrix[i, i])
    queries, rows = (np.array(column) for column in zip(*pairs, strict=True))
    found = _masked_in_batch_loss(scores, queries, rows)
    assert float(found) == pytest.approx(total / (2 * count), abs=1e-9)


def test_row_adam_is_adam_with_one_second_moment_a_row():
    table = torch.zeros(3, 2)
    first, second = torch.zeros(3, 2), torch.zeros(3)
    rows = torch.tensor([2, 0])
    gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    _row_adam(table, first, second, rows, gradient, 0, 0.1)
    # Bias-corrected first step: −rate · g / √mean(g²), here √12.5.
    np.testing.assert_allclose(table[2], -0.1 * gradient[0] / 12.5**0.5, rtol=1e-4)
    assert not table[:2].any()
    assert not first[1].any()
    _row_adam(table, first, second, torch.tensor([2]), gradient[:1], 1, 0.1)
    # The same gradient again: both corrected moments are unchanged.
    np.testing.assert_allclose(table[2], -0.2 * gradient[0] / 12.5**0.5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"bucket_count": 1000}, "power of two"), ({"pseudo_share": 1.5}, "pseudo_share")],
)
def test_settings_that_cannot_work(change: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        EncoderSettings(**change)  # pyright: ignore[reportArgumentType]
