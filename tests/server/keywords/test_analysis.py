"""Intents, categories, attributes, topics."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.attribute_types import AttributeType
from server.keywords.analysis import analyse
from server.keywords.keywords import MAX_QUERY_LENGTH, Attribute, Intent
from server.keywords.reading import read
from server.keywords.vocabulary import Vocabulary


def test_categories_go_from_coarse_to_fine(vocabulary: Vocabulary) -> None:
    analysis = analyse(read("black hiking boots", vocabulary), vocabulary)
    assert analysis.categories == ("fashion", "shoes", "hiking boots")


def test_a_purpose_of_several_categories_stops_where_they_part(vocabulary: Vocabulary) -> None:
    analysis = analyse(read("fatigue relief", vocabulary), vocabulary)
    assert analysis.categories[:2] in ((), ("health",), ("health", "wellness"))
    assert len(analysis.categories) < 3
    assert analysis.intents == (Intent.FUNCTION,)


def test_without_paths_the_thing_itself_is_the_category(vocabulary: Vocabulary) -> None:
    flat = replace(vocabulary, paths=())
    analysis = analyse(read("white office chair", flat), flat)
    assert analysis.categories == ("chairs", "office chairs")


def test_topics_keep_what_the_dictionary_does_not_know(vocabulary: Vocabulary) -> None:
    analysis = analyse(read("ergonomic saddle office chair", vocabulary), vocabulary)
    assert analysis.topics == ("ergonomic", "saddle", "office chairs")


def test_refused_values_are_no_attributes(vocabulary: Vocabulary) -> None:
    analysis = analyse(read("red rug not red", vocabulary), vocabulary)
    assert analysis.excluded == ("red",)
    assert Attribute(AttributeType.COLOR, "red") not in analysis.attributes


@pytest.mark.parametrize("query", ["", "   ", "?", "what?", "80/7", "\x00", "🛋️", "a" * 512])
def test_odd_queries_are_analysed(vocabulary: Vocabulary, query: str) -> None:
    analysis = analyse(read(query, vocabulary), vocabulary)
    assert analysis.intents
    assert analysis.excluded == ()


@given(text=st.text(max_size=80))
def test_any_text_is_analysed(vocabulary: Vocabulary, text: str) -> None:
    analysis = analyse(read(text, vocabulary), vocabulary)
    assert analysis.intents
    values = {attribute.value for attribute in analysis.attributes}
    assert not values & set(analysis.excluded)


@pytest.mark.parametrize("part", ["no ", "not red ", "abcdefgh", "不要", "x-free ", "no-", "of "])
def test_long_queries_take_no_time(vocabulary: Vocabulary, part: str) -> None:
    query = (part * MAX_QUERY_LENGTH)[:MAX_QUERY_LENGTH]
    started = time.process_time()
    analyse(read(query, vocabulary), vocabulary)
    assert time.process_time() - started < 30


@pytest.mark.parametrize(
    ("query", "merchandise"),
    [
        ("what does wg mean?", False),
        ("why is the sky blue?", True),  # "blue" is a colour of the shop: rather search than refuse
        ("why do cats purr", True),
        ("who is the president", False),
        ("how much is a wombat", True),
        ("这个词什么意思", False),
        ("土猪肉多少钱一斤", True),
    ],
)
def test_questions_of_knowledge(vocabulary: Vocabulary, query: str, merchandise: bool) -> None:
    assert analyse(read(query, vocabulary), vocabulary).merchandise is merchandise


def test_free_shipping_of_shoes_is_merchandise(vocabulary: Vocabulary) -> None:
    assert analyse(read("running shoes free shipping", vocabulary), vocabulary).merchandise
    assert not analyse(read("free shipping", vocabulary), vocabulary).merchandise
