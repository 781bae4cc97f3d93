"""What a user's past does to the terms."""

from __future__ import annotations

from index.attribute_types import AttributeType
from server.keywords.analysis import analyse
from server.keywords.calibration import calibrate
from server.keywords.extraction import candidate_of, extract
from server.keywords.keywords import KeywordRequest
from server.keywords.reading import read
from server.keywords.vocabulary import Vocabulary


def calibrated(request: KeywordRequest, vocabulary: Vocabulary, *proposed: str) -> set[str]:
    analysis = analyse(read(request.query, vocabulary), vocabulary)
    candidates = extract(analysis, [], vocabulary)
    candidates += [
        candidate_of(term, AttributeType.ENTITY, vocabulary, named=False) for term in proposed
    ]
    return {c.term for c in calibrate(candidates, analysis, request, vocabulary)}


BLACK_STRIDER = ("Strider black mesh running shoes", "Strider light black rubber running shoes")


def test_what_the_user_keeps_choosing_is_added(vocabulary: Vocabulary) -> None:
    request = KeywordRequest("running shoes", "u", clicked_titles=BLACK_STRIDER)
    assert calibrated(request, vocabulary) == {"running shoes", "strider", "black"}


def test_the_query_has_the_last_word(vocabulary: Vocabulary) -> None:
    request = KeywordRequest("white running shoes", "u", clicked_titles=BLACK_STRIDER)
    assert calibrated(request, vocabulary) == {"running shoes", "white", "strider"}


def test_what_is_refused_is_never_added(vocabulary: Vocabulary) -> None:
    request = KeywordRequest("running shoes not from strider", "u", clicked_titles=BLACK_STRIDER)
    assert calibrated(request, vocabulary) == {"running shoes", "black"}


def test_other_things_teach_nothing(vocabulary: Vocabulary) -> None:
    request = KeywordRequest("frying pan", "u", clicked_titles=BLACK_STRIDER)
    assert calibrated(request, vocabulary) == {"frying pans"}


def test_once_is_no_preference(vocabulary: Vocabulary) -> None:
    request = KeywordRequest("running shoes", "u", recent_queries=("strider running shoes",))
    assert calibrated(request, vocabulary) == {"running shoes"}


def test_the_profile_filters_what_was_only_proposed(vocabulary: Vocabulary) -> None:
    request = KeywordRequest("sandals", "u", profile=(("gender", "M"),))
    assert calibrated(request, vocabulary, "women shoes", "men shoes") == {"sandals", "men shoes"}
    asked = KeywordRequest("womens running shoes", "u", profile=(("gender", "M"),))
    assert "women" in calibrated(asked, vocabulary)


def test_without_a_user_nothing_changes(vocabulary: Vocabulary) -> None:
    request = KeywordRequest("running shoes", clicked_titles=BLACK_STRIDER)
    assert calibrated(request, vocabulary) == {"running shoes"}
