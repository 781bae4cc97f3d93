"""What is refused, as a test of terms, concepts and items."""

from __future__ import annotations

import numpy as np

from index.attribute_types import AttributeType
from index.snapshot import Snapshot
from server.keywords.refusal import Refusal
from server.keywords.vocabulary import Vocabulary


def test_terms(vocabulary: Vocabulary) -> None:
    refusal = Refusal(("wool", "stainless steel"), vocabulary)
    assert refusal.has_term("wool")
    assert refusal.has_term("red wool rug")
    assert refusal.has_term("woollen")  # the dictionary's word for wool
    assert refusal.has_term("stainless steel kettle")
    assert not refusal.has_term("steel")
    assert not refusal.has_term("woolly bear")


def test_items_that_have_it_are_not_allowed(shop: Snapshot, vocabulary: Vocabulary) -> None:
    rows = np.arange(len(shop.items))
    allowed = Refusal(("wool",), vocabulary).allowed(rows)
    assert set(rows[~allowed]) == set(shop.items.rows_with("material", "wool").tolist())


def test_a_refused_kind_takes_its_category_along(shop: Snapshot, vocabulary: Vocabulary) -> None:
    refusal = Refusal(("supplements",), vocabulary)
    rows = np.arange(len(shop.items))
    category = [shop.items.get(row)["category"][-1] for row in rows[~refusal.allowed(rows)]]
    assert set(category) == {"supplements"}
    tablets = vocabulary.number(AttributeType.ENTITY, "vitamin tablets")
    massager = vocabulary.number(AttributeType.ENTITY, "massagers")
    assert tablets is not None and massager is not None
    assert refusal.has_concept(tablets)
    assert not refusal.has_concept(massager)


def test_nothing_refused(shop: Snapshot, vocabulary: Vocabulary) -> None:
    refusal = Refusal((), vocabulary)
    assert not refusal
    assert not refusal.has_term("wool")
    assert refusal.allowed(np.arange(len(shop.items))).all()


def test_free_of_it_is_what_is_wanted(shop: Snapshot, vocabulary: Vocabulary) -> None:
    refusal = Refusal(("sugar",), vocabulary)
    assert refusal.has_term("sugar")
    assert refusal.has_term("brown sugar")
    assert not refusal.has_term("sugar-free")
    free = shop.items.rows_with("category", "supplements").astype(np.int64)
    assert refusal.allowed(free).all()


def test_values_without_words(vocabulary: Vocabulary) -> None:
    refusal = Refusal(("!!", ""), vocabulary)
    assert not refusal.has_term("rug")
    assert refusal.allowed(np.arange(5)).all()
