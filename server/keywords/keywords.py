"""Keywords of a query: what is asked of a generator, what it found out, what it answers.

Source: METHOD §4 (TAQU): analysis → extraction → calibration. The three values here are the only
things that travel: a request goes through the queue, keywords through the store, both as JSON.

Invariants. Values are immutable. `terms` has at most MAX_TERMS terms, most popular first; no term
is in `excluded`. A value that came back from JSON is one that could have been made here: everything
that other processes wrote is validated, and unknown fields are ignored, so that an older reader
meets a newer writer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, TypeVar

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from index.attribute_types import AttributeType
from index.errors import DataError
from index.text import normalise

MAX_TERMS = 8
# What a job may carry; longer input is cut by whoever makes the request.
MAX_QUERY_LENGTH = 512
MAX_RECENT = 20
MAX_PROFILE = 20
MAX_TEXT_LENGTH = 512

T = TypeVar("T")
_Text = Annotated[str, Field(max_length=MAX_TEXT_LENGTH)]


class Intent(StrEnum):
    """What a searcher wants. A query can have several, except that nothing goes with the last."""

    PRODUCT = "product"
    FUNCTION = "function"
    QUESTION = "question"
    NEGATION = "negation"
    RECOMMENDATION = "recommendation"
    RANKING = "ranking"
    ALTERNATIVE = "alternative"
    NON_MERCHANDISE = "non-merchandise"


@dataclass(frozen=True, slots=True)
class Attribute:
    """A property that a query names, e.g. Color: red. `value` is in normal form."""

    type: AttributeType
    value: str


@dataclass(frozen=True, slots=True)
class KeywordRequest:
    """A query, and of its user what generators may use. `user_id` None: generic keywords.

    `profile`: (name, value) pairs. `recent_queries` and `clicked_titles` (titles of items): oldest
    first. `locale`: BCP 47, e.g. "zh-CN"; None when unknown.
    """

    query: Annotated[str, Field(max_length=MAX_QUERY_LENGTH)]
    user_id: _Text | None = None
    profile: Annotated[tuple[tuple[_Text, _Text], ...], Field(max_length=MAX_PROFILE)] = ()
    recent_queries: Annotated[tuple[_Text, ...], Field(max_length=MAX_RECENT)] = ()
    clicked_titles: Annotated[tuple[_Text, ...], Field(max_length=MAX_RECENT)] = ()
    locale: Annotated[str, Field(max_length=35)] | None = None

    @property
    def normalised(self) -> str:
        """The query in normal form: what stores and generators key on."""
        return normalise(self.query)

    @property
    def personalised(self) -> bool:
        """Whether anything is known of the user that keywords could be calibrated with."""
        known = self.profile or self.recent_queries or self.clicked_titles
        return self.user_id is not None and bool(known)


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a query means.

    `categories`: coarse to fine. `attributes`: what the query names and does not exclude.
    `topics`: the things and purposes it is about. `merchandise`: whether a shop can answer it at
    all; if not, everything else but `intents` is empty. `excluded`: what must not be shown.
    """

    intents: tuple[Intent, ...] = (Intent.PRODUCT,)
    categories: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    topics: tuple[str, ...] = ()
    merchandise: bool = True
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """What made keywords. Everything that changes them is in here.

    `model` is "" and `temperature` 0 where no model takes part.
    """

    generator: str
    model: str = ""
    prompt_version: str = ""
    catalogue_version: str = ""
    temperature: float = 0.0

    @property
    def version(self) -> str:
        """A short name of this source for store keys, e.g. "statistical-3f1c9a0b5d2e"."""
        parts = (
            self.generator,
            self.model,
            self.prompt_version,
            self.catalogue_version,
            repr(float(self.temperature)),
        )
        digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=6).hexdigest()
        return f"{self.generator}-{digest}"


@dataclass(frozen=True, slots=True)
class Keywords:
    """What a generator found for a query (in normal form). No terms is an answer too.

    `created_s`: seconds since 1970. `personalised`: made for one user, not to be shown to others.
    """

    query: str
    terms: Annotated[tuple[str, ...], Field(max_length=MAX_TERMS)]
    excluded: tuple[str, ...]
    analysis: Analysis
    source: Source
    created_s: float
    personalised: bool = False

    def __post_init__(self) -> None:
        assert len(self.terms) <= MAX_TERMS, f"{len(self.terms)} terms"


_REQUEST = TypeAdapter(KeywordRequest)
_KEYWORDS = TypeAdapter(Keywords)


def request_to_json(request: KeywordRequest) -> bytes:
    """One JSON object."""
    return orjson.dumps(request)


def request_from_json(raw: bytes | str) -> KeywordRequest:
    """Raises DataError, naming the field, if `raw` is not a keyword request."""
    return _parsed(_REQUEST, raw, "a keyword request")


def keywords_to_json(keywords: Keywords) -> bytes:
    """One JSON object."""
    return orjson.dumps(keywords)


def keywords_from_json(raw: bytes | str) -> Keywords:
    """Raises DataError, naming the field, if `raw` is not keywords."""
    return _parsed(_KEYWORDS, raw, "keywords")


def _parsed(kind: TypeAdapter[T], raw: bytes | str, what: str) -> T:
    try:
        return kind.validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = f"not {what}: {first['msg']}"
        raise DataError(message, field=place or None) from None
