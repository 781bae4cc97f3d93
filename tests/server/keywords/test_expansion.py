"""Feedback of the best items."""

from __future__ import annotations

import numpy as np
import pytest

from index.attribute_types import AttributeType
from index.snapshot import Snapshot
from server.keywords.expansion import feedback_scores, propose
from server.keywords.refusal import Refusal
from server.keywords.vocabulary import Vocabulary


def test_score_is_the_contribution_to_the_divergence(
    shop: Snapshot, vocabulary: Vocabulary
) -> None:
    rows = shop.items.rows_with("category", "massagers").astype(np.int64)
    scores = feedback_scores(rows, Refusal((), vocabulary), vocabulary)
    number = vocabulary.number(AttributeType.FUNCTION, "neck pain relief")
    assert number is not None
    weight = 1 / np.sqrt(np.arange(len(rows)) + 1)
    having = np.array([number in vocabulary.items.of(row) for row in rows])
    share = weight[having].sum() / weight.sum()
    background = vocabulary.frequency[number] / len(shop.items)
    assert scores[number] == pytest.approx(share * np.log(share / background))
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


def test_refused_items_give_no_feedback(shop: Snapshot, vocabulary: Vocabulary) -> None:
    rows = np.concatenate(
        [shop.items.rows_with("category", name) for name in ("supplements", "massagers")]
    ).astype(np.int64)
    refusal = Refusal(("supplements",), vocabulary)
    scores = feedback_scores(rows, refusal, vocabulary)
    found = propose([(1.0, scores)], refusal, vocabulary, 20)
    values = {vocabulary.concepts[proposal.number].value for proposal in found}
    assert "massagers" in values
    assert not values & {"supplements", "vitamin tablets", "herbal supplement"}


def test_colours_are_not_proposed(vocabulary: Vocabulary) -> None:
    red = vocabulary.number(AttributeType.COLOR, "red")
    rug = vocabulary.number(AttributeType.ENTITY, "rugs")
    assert red is not None and rug is not None
    found = propose([(1.0, {red: 9.0, rug: 0.5})], Refusal((), vocabulary), vocabulary, 3)
    assert [proposal.number for proposal in found] == [rug]


def test_one_item_is_no_feedback(vocabulary: Vocabulary) -> None:
    assert feedback_scores(np.array([3]), Refusal((), vocabulary), vocabulary) == {}
