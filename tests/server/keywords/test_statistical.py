"""The statistical generator as workers use it."""

from __future__ import annotations

import asyncio

import pytest

from index.snapshot import Snapshot
from server.keywords.associations import Associations, Click
from server.keywords.generator import KeywordGenerator
from server.keywords.keywords import KeywordRequest, Keywords, keywords_from_json, keywords_to_json
from server.keywords.statistical import ExpansionSettings, StatisticalGenerator
from server.keywords.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def generator(shop: Snapshot, vocabulary: Vocabulary) -> StatisticalGenerator:
    return StatisticalGenerator(shop, vocabulary=vocabulary, clock=lambda: 12.5)


def test_answers_in_order(generator: StatisticalGenerator) -> None:
    protocol: KeywordGenerator = generator
    requests = [KeywordRequest("Red Rug"), KeywordRequest("track my order"), KeywordRequest("")]
    answers = asyncio.run(protocol.generate(requests))
    keywords = [answer for answer in answers if isinstance(answer, Keywords)]
    assert [answer.query for answer in keywords] == ["red rug", "track my order", ""]
    assert {"red", "rugs"} <= set(keywords[0].terms)
    assert keywords[1].terms == ()
    assert all(answer.created_s == 12.5 for answer in keywords)
    assert all(answer.source.version == protocol.version for answer in keywords)
    assert [keywords_from_json(keywords_to_json(answer)) for answer in keywords] == keywords


def test_a_batch_is_its_parts(generator: StatisticalGenerator) -> None:
    requests = [
        KeywordRequest(text)
        for text in ("blue curtains", "relieve fatigue, no supplements", "真丝连衣裙", "xyzzy")
    ]
    together = generator.generate_batch(requests)
    assert together == [generator.generate_batch([request])[0] for request in requests]


def test_clicks_bring_terms_that_no_title_suggests(
    shop: Snapshot, vocabulary: Vocabulary, generator: StatisticalGenerator
) -> None:
    rows = shop.items.rows_with("category", "massagers").tolist()
    # Half of all clicks elsewhere, so that massagers stand out.
    others = [Click("mug", row) for row in shop.items.rows_with("category", "mugs").tolist()]
    log = [*(Click("weary", row) for row in rows), *others]
    clicks = Associations.build(log, vocabulary, version="log 1")
    settings = ExpansionSettings(dense_weight=0.0)
    learnt = StatisticalGenerator(shop, clicks, settings, vocabulary=vocabulary)
    (keywords,) = learnt.generate_batch([KeywordRequest("weary")])
    assert "massagers" in keywords.terms
    later = Associations.build(log, vocabulary, version="log 2")
    versions = {
        StatisticalGenerator(shop, known, settings, vocabulary=vocabulary).version
        for known in (None, clicks, later)
    }
    assert len(versions | {generator.version}) == 4


def test_personal_keywords_are_marked(generator: StatisticalGenerator) -> None:
    titles = ("Strider black mesh running shoes",) * 2
    requests = [
        KeywordRequest("running shoes"),
        KeywordRequest("running shoes", "u", clicked_titles=titles),
    ]
    generic, personal = generator.generate_batch(requests)
    assert (generic.personalised, personal.personalised) == (False, True)
    assert "strider" in personal.terms
    assert "strider" not in generic.terms


def test_nothing_proposed_means_only_what_is_named(shop: Snapshot, vocabulary: Vocabulary) -> None:
    settings = ExpansionSettings(max_proposals=0)
    plain = StatisticalGenerator(shop, settings=settings, vocabulary=vocabulary)
    (keywords,) = plain.generate_batch([KeywordRequest("red rug")])
    assert set(keywords.terms) == {"red", "rugs"}
