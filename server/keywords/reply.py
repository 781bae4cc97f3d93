"""What a language model may reply, and what becomes of it.

A reply is data of a stranger: it is validated strictly (types, lengths, counts, known intents and
attribute types; unknown fields are dropped), then only what a search can use is kept:
- terms in normal form, short, written with letters, digits and the signs of product names, so no
  address, no markup and no sentence gets through;
- attributes that the query names;
- exclusions that the query's own wording rules out (server.keywords.negation), and of the model's
  those that stand in the query and that the model does not itself ask for: a wrong one would hide
  what the shopper wants;
- no term that is praise alone or holds what is excluded;
- nothing at all where the shop cannot answer;
- with a catalogue's vocabulary: its spelling and order of terms (server.keywords.extraction), and
  no term with a word that no item has.
So a text that talks the model into something changes its own query's terms only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.attribute_types import AttributeType, lexicon
from index.text import normalise, words
from server.keywords.analysis import values_of
from server.keywords.extraction import clean_terms
from server.keywords.keywords import MAX_TERMS, Analysis, Attribute, Intent
from server.keywords.negation import split_negations
from server.keywords.vocabulary import Vocabulary

MAX_TERM_LENGTH = 64
MAX_TERM_WORDS = 6
MAX_CATEGORIES = 3
MAX_TOPICS = 5
MAX_EXCLUDED = 5
MAX_ATTRIBUTES = 8
MAX_INTENTS = 3
MAX_PROBLEMS = 3
# Raised when what is kept of a reply changes: stored keywords made before are then left alone.
REPLY_VERSION = 1

_CLOSE_SPELLING = 0.75
_MIN_MISSPELT = 4
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_TERM = re.compile(r"""[\w$€£¥][\w \-.,/+&'"°%#×·()®™½¼¾$€£¥]*""")
_ADDRESS = re.compile(r"www\.|\.(?:com|net|org|io|cn)\b|/{2}|[\w.]+@[\w.]+")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")

_Term = Annotated[str, Field(min_length=1, max_length=MAX_TERM_LENGTH)]
Reply = TypeVar("Reply", bound="StrictReply")


class ReplyError(Exception):
    """The reply cannot be used. The message is for the model: it never repeats the reply."""


class StrictReply(BaseModel):
    """Base of the replies: JSON types as they are, nothing is converted."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class ReplyAttribute(StrictReply):
    """See keywords.Attribute."""

    type: AttributeType
    value: _Term


class Understanding(StrictReply):
    """Analysis and extraction in one reply: the fields before `keywords` lead up to them.

    Lists that the model left out are empty.
    """

    intents: Annotated[list[Intent], Field(min_length=1, max_length=MAX_INTENTS)]
    categories: list[_Term] = Field(default_factory=list[_Term], max_length=MAX_CATEGORIES)
    attributes: list[ReplyAttribute] = Field(
        default_factory=list[ReplyAttribute], max_length=MAX_ATTRIBUTES
    )
    topics: list[_Term] = Field(default_factory=list[_Term], max_length=MAX_TOPICS)
    excluded: list[_Term] = Field(default_factory=list[_Term], max_length=MAX_EXCLUDED)
    keywords: Annotated[list[_Term], Field(max_length=MAX_TERMS)]


class Calibration(StrictReply):
    """The keywords fitted to one shopper."""

    keywords: Annotated[list[_Term], Field(min_length=1, max_length=MAX_TERMS)]


def parse(kind: type[Reply], text: str) -> Reply:
    """The reply in `text`, which may have thoughts before it and words or a fence around it.

    Raises ReplyError.
    """
    text = _THOUGHTS.sub("", text)
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise ReplyError("it has no JSON object" if text.strip() else "it is empty")
    try:
        return kind.model_validate_json(text[start : end + 1])
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        told = [
            ": ".join(part for part in (_place(problem["loc"]), problem["msg"]) if part)
            for problem in problems[:MAX_PROBLEMS]
        ]
        raise ReplyError("; ".join(told)) from None


def _place(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location)


def schema(kind: type[StrictReply], lengths: bool = True) -> dict[str, Any]:
    """The JSON schema of a reply, closed: all fields required, no others, no references.

    `lengths`: with the limits on texts, which some hosted services do not take.
    """
    raw = kind.model_json_schema()
    return _closed(raw, raw.get("$defs", {}), lengths)


def _closed(raw: Any, definitions: dict[str, Any], lengths: bool) -> Any:
    if isinstance(raw, list):
        return [_closed(part, definitions, lengths) for part in raw]
    if not isinstance(raw, dict):
        return raw
    if "$ref" in raw:
        return _closed(definitions[raw["$ref"].rsplit("/", 1)[1]], definitions, lengths)
    dropped = {"title", "description", "$defs"}
    if not lengths:
        dropped |= {"minLength", "maxLength"}
    closed = {
        name: (
            {field: _closed(value, definitions, lengths) for field, value in part.items()}
            if name == "properties"
            else _closed(part, definitions, lengths)
        )
        for name, part in raw.items()
        if name not in dropped
    }
    if "properties" in closed:
        closed["required"] = list(closed["properties"])
        closed["additionalProperties"] = False
    return closed


def analysis_of(reply: Understanding, query: str, vocabulary: Vocabulary | None = None) -> Analysis:
    """What the reply says of `query` (in normal form), as far as it can be so."""
    said = set(reply.intents)
    if said == {Intent.NON_MERCHANDISE} and not reply.keywords:
        return Analysis(intents=(Intent.NON_MERCHANDISE,), merchandise=False)
    excluded = tuple(dict.fromkeys((*_refused(query, vocabulary), *_ruled_out(reply, query))))
    said -= {Intent.NON_MERCHANDISE, Intent.NEGATION}
    if excluded:
        said.add(Intent.NEGATION)
    intents = tuple(intent for intent in Intent if intent in said)
    attributes = dict.fromkeys(
        Attribute(attribute.type, value)
        for attribute in reply.attributes
        for value in _usable((attribute.value,))
        if _named(value, query) and not holds(value, excluded)
    )
    return Analysis(
        intents=intents or (Intent.PRODUCT,),
        categories=_without(reply.categories, excluded),
        attributes=tuple(attributes),
        topics=_without(reply.topics, excluded),
        excluded=excluded,
    )


def terms_of(
    keywords: Iterable[str], excluded: Sequence[str], vocabulary: Vocabulary | None = None
) -> tuple[str, ...]:
    """The keywords that a search can use, at most MAX_TERMS, in their or the vocabulary's order."""
    terms = tuple(term for term in _without(keywords, excluded) if term not in _marketing())
    if vocabulary is not None:
        known = [term for term in terms if vocabulary.phrase_popularity(term) > 0]
        terms = clean_terms(known, excluded, vocabulary)
    return terms[:MAX_TERMS]


@cache
def _marketing() -> frozenset[str]:
    """Words that praise or price and name nothing."""
    surfaces = lexicon()[AttributeType.MARKETING]
    return frozenset(
        normalise(word) for name, others in surfaces.items() for word in (name, *others)
    )


def _refused(query: str, vocabulary: Vocabulary | None) -> tuple[str, ...]:
    """What the wording of the query rules out."""
    if vocabulary is None:
        return _usable(split_negations(query, _knows_nothing, lambda text: 0).refused)
    refused = split_negations(query, vocabulary.neighbours, vocabulary.phrase_length).refused
    return _usable(value for phrase in refused for value in values_of(phrase, vocabulary))


def _ruled_out(reply: Understanding, query: str) -> list[str]:
    """The model's exclusions that can be believed."""
    if Intent.NEGATION not in reply.intents:
        return []
    wanted = (*reply.keywords, *reply.topics, *(a.value for a in reply.attributes))
    said = words(query)
    return [
        term
        for term in _usable(reply.excluded)
        if _stands_in(term, query)
        and len(words(term)) < len(said)
        and not any(holds(other, (term,)) for other in wanted)
    ]


def _knows_nothing(cue: str, following: str) -> bool:
    return False


def holds(term: str, excluded: Iterable[str]) -> bool:
    """Whether one of `excluded` is part of `term`, other than as "…-free" or "…less"."""
    return any(_mentions(words(term), words(part)) for part in excluded)


def _mentions(term: Sequence[str], part: Sequence[str]) -> bool:
    size = len(part)
    places = range(len(term) - size + 1) if size else range(0)
    return any(
        list(term[place : place + size]) == list(part)
        and list(term[place + size : place + size + 1]) not in (["free"], ["less"])
        for place in places
    )


def _without(terms: Iterable[str], excluded: Sequence[str]) -> tuple[str, ...]:
    return tuple(term for term in _usable(terms) if not holds(term, excluded))


def _usable(terms: Iterable[str]) -> tuple[str, ...]:
    """Normal form, without those that no product is called; of equal words the first."""
    kept: dict[tuple[str, ...], str] = {}
    for raw in terms:
        term = normalise(raw).strip(" .,-")
        parts = tuple(words(term))
        long = len(term.split()) > MAX_TERM_WORDS or len(term) > MAX_TERM_LENGTH
        if parts and not long and _TERM.fullmatch(term) and not _ADDRESS.search(term):
            kept.setdefault(parts, term)
    return tuple(kept.values())


def _stands_in(term: str, query: str) -> bool:
    """Whether the query has the words of the term, one after the other."""
    return _mentions_anyhow(words(query), words(term))


def _mentions_anyhow(text: Sequence[str], part: Sequence[str]) -> bool:
    size = len(part)
    return size > 0 and any(
        list(text[place : place + size]) == list(part) for place in range(len(text) - size + 1)
    )


def _named(value: str, query: str) -> bool:
    """Whether the query names the value, perhaps misspelt."""
    if _CJK.search(value):
        return _stands_in(value, query)
    known = words(query)
    return all(any(_alike(word, other) for other in known) for word in words(value))


def _alike(word: str, other: str) -> bool:
    if word == other:
        return True
    if min(len(word), len(other)) < _MIN_MISSPELT or any(map(str.isdigit, word)):
        return False
    return SequenceMatcher(None, word, other).ratio() >= _CLOSE_SPELLING
