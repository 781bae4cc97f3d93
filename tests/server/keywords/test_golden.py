"""Sixty queries of all intents in two languages: precision of attributes, exclusion of refusals.

The queries and the shop were written for this test. Expectations use the catalogue's canonical
values. Attribute precision is counted over all queries, each (type, value) once a query.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from index.snapshot import Snapshot
from index.text import words
from server.keywords.keywords import Intent, KeywordRequest, Keywords
from server.keywords.statistical import StatisticalGenerator
from server.keywords.vocabulary import Vocabulary

MIN_PRECISION = 0.95
MIN_RECALL = 0.95
MIN_INTENT_ACCURACY = 0.95
MIN_CATEGORY_ACCURACY = 0.9
QUERIES = 60


class Golden(NamedTuple):
    expected: dict[str, Any]
    keywords: Keywords


@pytest.fixture(scope="module")
def golden(shop: Snapshot, vocabulary: Vocabulary) -> list[Golden]:
    lines = Path(__file__).with_name("golden.jsonl").read_bytes().splitlines()
    rows = [orjson.loads(line) for line in lines]
    generator = StatisticalGenerator(shop, vocabulary=vocabulary)
    answers = generator.generate_batch([KeywordRequest(row["query"]) for row in rows])
    return [Golden(row, answer) for row, answer in zip(rows, answers, strict=True)]


def test_there_are_sixty_of_every_intent_in_two_languages(golden: list[Golden]) -> None:
    assert len({case.expected["query"] for case in golden}) == QUERIES
    intents = Counter(intent for case in golden for intent in case.expected["intents"])
    assert set(intents) == set(Intent)
    assert min(intents.values()) >= 3
    chinese = sum(not case.expected["query"].isascii() for case in golden)
    assert 15 <= chinese <= 45


@pytest.mark.parametrize("chinese", [False, True])
def test_attributes_are_precise(golden: list[Golden], chinese: bool) -> None:
    right = wrong = missed = 0
    for expected, keywords in golden:
        if expected["query"].isascii() is not chinese:
            wanted = {(kind, value) for kind, value in expected["attributes"]}
            found = {(a.type.value, a.value) for a in keywords.analysis.attributes}
            right += len(found & wanted)
            wrong += len(found - wanted)
            missed += len(wanted - found)
    assert right / (right + wrong) >= MIN_PRECISION
    assert right / (right + missed) >= MIN_RECALL


def test_what_is_refused_is_excluded_and_nothing_else(golden: list[Golden]) -> None:
    for expected, keywords in golden:
        assert list(keywords.excluded) == expected["excluded"], expected["query"]
        assert keywords.analysis.excluded == keywords.excluded


def test_no_term_says_what_is_refused(golden: list[Golden]) -> None:
    checked = 0
    for expected, keywords in golden:
        for refused in expected["excluded"]:
            checked += 1
            for term in keywords.terms:
                assert not set(words(refused)) <= set(words(term)), (expected["query"], term)
            values = {attribute.value for attribute in keywords.analysis.attributes}
            assert refused not in values
    assert checked >= 20


def test_intents_are_told(golden: list[Golden]) -> None:
    right = sum(
        {intent.value for intent in keywords.analysis.intents} == set(expected["intents"])
        for expected, keywords in golden
    )
    assert right / len(golden) >= MIN_INTENT_ACCURACY


def test_categories_are_told(golden: list[Golden]) -> None:
    right = sum(
        (keywords.analysis.categories or (None,))[-1] == expected["category"]
        for expected, keywords in golden
    )
    assert right / len(golden) >= MIN_CATEGORY_ACCURACY


def test_what_is_no_merchandise_stops_there(golden: list[Golden]) -> None:
    for expected, keywords in golden:
        if expected["intents"] == ["non-merchandise"]:
            analysis = keywords.analysis
            assert not analysis.merchandise
            assert keywords.terms == analysis.topics == analysis.categories == ()
        else:
            assert keywords.analysis.merchandise
            assert 1 <= len(keywords.terms) <= 8, expected["query"]
