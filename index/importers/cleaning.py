"""One cell of a foreign source → one clean value.

A value that makes its row useless raises FieldError (the row is rejected). A value that can be
dropped or shortened without harm is, and the reason is counted as a warning:

| cell | rule |
|---|---|
| id | text or integer; empty, over 200 characters or with control characters: rejected |
| text | entities decoded, tags, comments, scripts and styles removed, control characters → space |
| title | empty after cleaning: rejected; over 1,000 characters: cut, warning |
| query | empty: rejected in judgments, null in events; over 500 characters: rejected |
| other text, lists | over-long: cut, over 64 values: cut, no text: dropped; warning |
| price, stock, popularity | not a number, not finite or negative: null, warning |
| position | not an integer ≥ 1: null, warning |
| grade, time | missing, not a number, not finite: rejected |
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any, cast

import orjson

MAX_ID_CHARACTERS = 200
MAX_TITLE_CHARACTERS = 1_000
MAX_QUERY_CHARACTERS = 500
MAX_DESCRIPTION_CHARACTERS = 10_000
MAX_VALUE_CHARACTERS = 200
MAX_VALUES = 64
MAX_POSITION = 2**31 - 1

Warn = Callable[[str, str], None]
"""Called with (field, reason)."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
_INVISIBLE = re.compile(r"[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_MARKUP = re.compile(
    r"<!--.*?(?:-->|$)|<(script|style)\b.*?(?:</\1\s*>|$)|</?[a-z][^<>]*>|<![a-z][^<>]*>",
    re.IGNORECASE | re.DOTALL,
)
_MAX_NESTED_ENCODINGS = 3
_CURRENCY = re.compile(r"^(?:[$€£¥]|usd|eur|gbp|cny)\s*|\s*(?:[$€£¥]|usd|eur|gbp|cny)$", re.I)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
_NOT_FINITE = frozenset({"nan", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"})
_MISSING_TEXT = frozenset({"", "null", "none", "n/a", "na"})


class FieldError(Exception):
    """A value that makes its row useless."""

    def __init__(self, field: str, reason: str, value: object = None) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
        self.value = value


def clean_text(value: str) -> str:
    """Plain text: no entities, no markup, no control or invisible characters, single spaces."""
    if "&" in value or "<" in value:
        for _ in range(_MAX_NESTED_ENCODINGS):
            plain = _MARKUP.sub(" ", html.unescape(value))
            if plain == value:
                break
            value = plain
    if not value.isascii():
        value = _INVISIBLE.sub("", value)
    return " ".join(_CONTROLS.sub(" ", value).split())


def read_id(field: str, value: object) -> str:
    """An id as text. Raises FieldError."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        raise FieldError(field, "missing")
    if not isinstance(value, str):
        raise FieldError(field, "not text", value)
    text = value.strip()
    if not text:
        raise FieldError(field, "missing")
    if len(text) > MAX_ID_CHARACTERS:
        raise FieldError(field, "too long", value)
    if _CONTROLS.search(text):
        raise FieldError(field, "control characters", value)
    return text


def read_optional_id(field: str, value: object) -> str | None:
    """An id, or None where there is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return read_id(field, value)


def read_title(field: str, value: object, warn: Warn) -> str:
    """A title of 1 to 1,000 characters. Raises FieldError when there is none."""
    text = read_text(field, value, MAX_TITLE_CHARACTERS, warn)
    if text is None:
        raise FieldError(field, "missing" if value is None else "empty", value)
    return text


def read_query(field: str, value: object) -> str | None:
    """A query, or None when empty. Raises FieldError when it is too long or no text."""
    text = read_text(field, value, None, _no_warning)
    if text is not None and len(text) > MAX_QUERY_CHARACTERS:
        raise FieldError(field, "too long", text)
    return text


def read_text(field: str, value: object, limit: int | None, warn: Warn) -> str | None:
    """Clean text of at most `limit` characters, None when empty. Raises FieldError."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:g}" if isinstance(value, float) else str(value)
    if not isinstance(value, str):
        raise FieldError(field, "not text", value)
    text = clean_text(value)
    if limit is not None and len(text) > limit:
        warn(field, "too long, cut")
        text = text[:limit].rstrip()
    return text or None


def read_optional_text(field: str, value: object, limit: int, warn: Warn) -> str | None:
    """Clean text, None when empty; what is no text is None with a warning."""
    try:
        return read_text(field, value, limit, warn)
    except FieldError as error:
        warn(field, f"{error.reason}, dropped")
        return None


def read_values(field: str, value: object, separator: str, warn: Warn) -> list[str] | None:
    """A list of distinct texts, from a list or from text with separators; None when empty."""
    if value is None:
        return None
    parts: Iterable[object]
    if isinstance(value, str):
        parts = value.split(separator) if separator else (value,)
    elif isinstance(value, list | tuple):
        parts = cast(Iterable[object], value)
    else:
        parts = (value,)
    found: dict[str, None] = {}
    for part in parts:
        text = read_optional_text(field, part, MAX_VALUE_CHARACTERS, warn)
        if text is not None:
            found[text] = None
    if len(found) > MAX_VALUES:
        warn(field, "too many values, cut")
    return list(found)[:MAX_VALUES] or None


def read_attributes(field: str, value: object, warn: Warn) -> dict[str, Any]:
    """Name → raw value, from an object, Arrow's list of pairs or JSON; else empty and a warning."""
    try:
        return _attributes(field, value)
    except FieldError as error:
        warn(field, f"{error.reason}, dropped")
        return {}


def _attributes(field: str, value: object) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise FieldError(field, "malformed JSON", value) from None
    if isinstance(value, list):
        try:
            value = dict(cast(Any, value))
        except (TypeError, ValueError):
            raise FieldError(field, "not an object", cast(object, value)) from None
    if not isinstance(value, Mapping):
        raise FieldError(field, "not an object", value)
    return {str(key): part for key, part in cast(Mapping[Any, Any], value).items()}


def read_number(field: str, value: object) -> float | None:
    """A finite number, or None when there is none. Raises FieldError."""
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in _MISSING_TEXT:
            return None
        if text.lower() in _NOT_FINITE:
            raise FieldError(field, "not finite", value)
        text = _THOUSANDS.sub("", _CURRENCY.sub("", text))
        if _NUMBER.fullmatch(text) is None:
            raise FieldError(field, "not a number", value)
        value = text
    if isinstance(value, bool):
        raise FieldError(field, "not a number", value)
    try:
        number = float(cast(Any, value))
    except (TypeError, ValueError, OverflowError):
        raise FieldError(field, "not a number", value) from None
    if not math.isfinite(number):
        raise FieldError(field, "not finite", value)
    return number


def read_required_number(field: str, value: object) -> float:
    """A finite number. Raises FieldError."""
    number = read_number(field, value)
    if number is None:
        raise FieldError(field, "missing")
    return number


def read_quantity(field: str, value: object, warn: Warn) -> float | None:
    """A number ≥ 0; anything else is None with a warning."""
    try:
        number = read_number(field, value)
    except FieldError as error:
        warn(field, f"{error.reason}, dropped")
        return None
    if number is not None and number < 0:
        warn(field, "negative, dropped")
        return None
    return number


def read_count(field: str, value: object, warn: Warn, *, least: int = 0) -> int | None:
    """An integer ≥ `least`; anything else is None with a warning."""
    number = read_quantity(field, value, warn)
    if number is None:
        return None
    if number < least or not number.is_integer() or number > MAX_POSITION:
        warn(field, "not a count, dropped")
        return None
    return int(number)


def read_time(field: str, value: object) -> float:
    """Seconds: a number, or a date and time in ISO 8601 (UTC unless it says). Raises FieldError."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) is None and len(value) >= 8:
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise FieldError(field, "not a time", value) from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return read_required_number(field, value)


def _no_warning(field: str, reason: str) -> None:
    """For fields that are rejected rather than cut."""
