"""Keywords and their JSON."""

from __future__ import annotations

import orjson
import pytest

from index.attribute_types import AttributeType
from index.errors import DataError
from server.keywords.keywords import (
    MAX_QUERY_LENGTH,
    MAX_RECENT,
    MAX_TERMS,
    Analysis,
    Attribute,
    Intent,
    KeywordRequest,
    Keywords,
    Source,
    keywords_from_json,
    keywords_to_json,
    request_from_json,
    request_to_json,
)

REQUEST = KeywordRequest(
    "Relieve FATIGUE, no supplements",
    user_id="u1",
    profile=(("gender", "女"),),
    recent_queries=("massage",),
    clicked_titles=("Neck massager 3000",),
    locale="en",
)
KEYWORDS = Keywords(
    query="relieve fatigue, no supplements",
    terms=("massager", "eye mask"),
    excluded=("supplements",),
    analysis=Analysis(
        intents=(Intent.FUNCTION, Intent.NEGATION),
        categories=("health", "relaxation"),
        attributes=(Attribute(AttributeType.FUNCTION, "fatigue"),),
        topics=("fatigue",),
        excluded=("supplements",),
    ),
    source=Source("llm", "qwen3-32b", "1", "abc", 0.2),
    created_s=1_700_000_000.25,
    personalised=True,
)


def test_request_survives_json() -> None:
    assert request_from_json(request_to_json(REQUEST)) == REQUEST


def test_keywords_survive_json() -> None:
    assert keywords_from_json(keywords_to_json(KEYWORDS)) == KEYWORDS


def test_json_is_plain() -> None:
    raw = orjson.loads(keywords_to_json(KEYWORDS))
    assert raw["analysis"]["attributes"] == [{"type": "Function", "value": "fatigue"}]
    assert raw["analysis"]["intents"] == ["function", "negation"]


def test_unknown_fields_are_ignored() -> None:
    raw = orjson.loads(request_to_json(REQUEST)) | {"newer": 1}
    assert request_from_json(orjson.dumps(raw)) == REQUEST


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"query": 3}, "query"),
        ({"query": "a" * (MAX_QUERY_LENGTH + 1)}, "query"),
        ({"recent_queries": ["q"] * (MAX_RECENT + 1)}, "recent_queries"),
        ({"profile": [["a"]]}, "profile.0"),
    ],
)
def test_bad_request_names_the_field(change: dict[str, object], field: str) -> None:
    raw = orjson.loads(request_to_json(REQUEST)) | change
    with pytest.raises(DataError) as caught:
        request_from_json(orjson.dumps(raw))
    assert caught.value.field is not None and caught.value.field.startswith(field)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"null", b'{"terms": []}', b"\xff"])
def test_what_is_no_keywords_is_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match="not keywords"):
        keywords_from_json(raw)


def test_too_many_terms_are_refused() -> None:
    raw = orjson.loads(keywords_to_json(KEYWORDS)) | {"terms": ["t"] * (MAX_TERMS + 1)}
    with pytest.raises(DataError, match="terms"):
        keywords_from_json(orjson.dumps(raw))


def test_normalised_query() -> None:
    assert KeywordRequest("  Red\tSHOES ").normalised == "red shoes"


def test_personalised_needs_a_user_and_something_known() -> None:
    assert REQUEST.personalised
    assert not KeywordRequest("q", user_id="u").personalised
    assert not KeywordRequest("q", recent_queries=("a",)).personalised


def test_source_version_tells_every_part() -> None:
    sources = [
        Source("a"),
        Source("a", model="m"),
        Source("a", prompt_version="m"),
        Source("a", catalogue_version="m"),
        Source("a", temperature=0.5),
        Source("b"),
    ]
    assert len({source.version for source in sources}) == len(sources)
    assert Source("a", temperature=0).version == Source("a", temperature=0.0).version
