"""From an analysis to at most eight terms."""

from __future__ import annotations

from index.attribute_types import AttributeType
from server.keywords.analysis import analyse
from server.keywords.expansion import Proposal
from server.keywords.extraction import clean_terms, extract
from server.keywords.keywords import MAX_TERMS, Analysis
from server.keywords.reading import read
from server.keywords.vocabulary import Vocabulary


def terms(query: str, vocabulary: Vocabulary, proposals: list[Proposal] | None = None) -> list[str]:
    analysis = analyse(read(query, vocabulary), vocabulary)
    return [candidate.term for candidate in extract(analysis, proposals or [], vocabulary)]


def proposal(kind: AttributeType, value: str, vocabulary: Vocabulary) -> Proposal:
    number = vocabulary.number(kind, value)
    assert number is not None
    return Proposal(number, 1.0)


def test_synonyms_are_one_term(vocabulary: Vocabulary) -> None:
    assert terms("grey gray rug rugs", vocabulary).count("gray") == 1
    assert terms("rug rugs", vocabulary) == ["rugs"]


def test_marketing_words_and_prices_are_no_terms(vocabulary: Vocabulary) -> None:
    found = terms("best cheap hot sale headphones under $50", vocabulary)
    assert found == ["headphones"]


def test_model_numbers_stay(vocabulary: Vocabulary) -> None:
    query = (
        "wexley black leather adjustable swivel office chair back pain relief long hours xr-2000"
    )
    found = terms(query, vocabulary)
    assert len(found) == MAX_TERMS
    assert "xr-2000" in found


def test_popular_terms_come_first(vocabulary: Vocabulary) -> None:
    analysis = analyse(read("natural oak desk tarn", vocabulary), vocabulary)
    found = extract(analysis, [], vocabulary)
    popularity = [candidate.popularity for candidate in found]
    assert popularity == sorted(popularity, reverse=True)
    assert len(found) == 4


def test_categories_stand_in_for_topics(vocabulary: Vocabulary) -> None:
    analysis = Analysis(categories=("home", "furniture", "desks"))
    assert [c.term for c in extract(analysis, [], vocabulary)] == ["desks"]


def test_proposals_fill_up_but_nothing_refused_gets_in(vocabulary: Vocabulary) -> None:
    tablets = proposal(AttributeType.ENTITY, "vitamin tablets", vocabulary)
    massagers = proposal(AttributeType.ENTITY, "massagers", vocabulary)
    found = terms("fatigue relief, no vitamin tablets", vocabulary, [tablets, massagers])
    assert set(found) == {"fatigue relief", "massagers"}


def test_a_term_within_another_is_dropped(vocabulary: Vocabulary) -> None:
    found = terms("mechanical keyboard keyboard", vocabulary)
    assert found == ["mechanical keyboard"]


def test_terms_from_elsewhere_follow_the_same_rules(vocabulary: Vocabulary) -> None:
    given = ["Rugs", "rug", "cheap", "WOOL rug", "beige", "", "xk-900", "jute"]
    found = clean_terms(given, ["wool"], vocabulary)
    assert set(found) == {"rugs", "beige", "xk-900", "jute"}
    assert len(clean_terms([f"word{i}x" for i in range(30)], (), vocabulary)) == MAX_TERMS
