"""Text of queries and items: one normal form, one product tokenizer.

Everything that reads text (lexical index, encoder, attribute dictionary, splits) starts here, so a
query and a title meet in the same form.

Invariants, tested as properties:
- `normalise` is idempotent and its result has no control characters and no double spaces;
- `words` depends on `normalise(text)` only, and `words(" ".join(words(text))) == words(text)`, so
  words may be joined, stored and tokenised again.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

MAX_CACHED_WORDS = 1 << 17

# Control characters become spaces; invisible format characters (soft hyphen, zero-width, bidi
# marks, byte order mark) vanish, so that they cannot make two equal texts differ.
_ASCII_CONTROLS = dict.fromkeys((*range(0x20), 0x7F), " ")
_SPACE_CATEGORIES = frozenset({"Cc", "Cs", "Cn", "Co", "Zl", "Zp", "Zs"})
_VULGAR_FRACTION = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞↉])")

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
_CJK_START = re.compile(f"[{_CJK}]")
# Vowel signs and accents belong to their letter, though `\w` does not know them.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x3000)) if unicodedata.category(c)[0] == "M")
_TOKEN = re.compile(
    rf"""
      \d+/\d+(?![\d/])                 # fraction
    | \d+\.\d+ | \.\d+ | \d+           # decimal, integer
    | [{_CJK}]+                        # scripts without spaces
    | (?:[^\W\d_{_CJK}]|[{_MARKS}])+   # letters
    """,
    re.VERBOSE,
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_INCH_MARK = re.compile(r"""(?<=\d)\s*(?:["”“]|''|’’|′′)""")
_FOOT_MARK = re.compile(r"(?<=\d)\s*['’′](?!\w)|(?<=\d)['’′](?=\s*\d)")
_POSSESSIVE = re.compile(r"(?<=[^\W\d_])['’](?:s\b)?")
# A lone w, v or a is a unit only where it touches its number: "60W", but "24 in. W" is a width.
_ATTACHED_UNIT = re.compile(r"(?<=\d)[wva](?!\w)")
_UNIT_OF_LETTER = {"w": " watt", "v": " volt", "a": " amp"}

_SPELLINGS = {
    "inch": "in",
    "inches": "in",
    "foot": "ft",
    "feet": "ft",
    "yd": "yard",
    "gallon": "gal",
    "pound": "lb",
    "lbs": "lb",
    "ounce": "oz",
    "quart": "qt",
    "square": "sq",
    "cubic": "cu",
    "shelves": "shelf",
    "knives": "knife",
    "leaves": "leaf",
    "halves": "half",
    "loaves": "loaf",
}


def normalise(text: str) -> str:
    """NFKC, case folded, control characters → space, white space collapsed, ends stripped."""
    if text.isascii():
        return " ".join(text.lower().translate(_ASCII_CONTROLS).split())
    text = _VULGAR_FRACTION.sub(" ", text).replace("\u2044", "/")
    # Folding can undo NFKC and the other way round; a second round settles every known case.
    for _ in range(3):
        folded = unicodedata.normalize("NFKC", text).casefold().replace("\u2044", "/")
        folded = "".join(map(_visible, folded))
        if folded == text:
            break
        text = folded
    return " ".join(text.split())


def _visible(character: str) -> str:
    if character.isascii():
        return " " if ord(character) in _ASCII_CONTROLS else character
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    return " " if category in _SPACE_CATEGORIES else character


def words(text: str) -> list[str]:
    """Product tokens of a text, in order: `2-1/2" PVC Tees` → 2, 1/2, in, pvc, tee.

    Numbers keep fractions and decimals, letters and digits are split apart ("2x4" → 2, x, 4),
    units have one spelling (inch, inches, `"` → in), plurals are cut. Chinese, Japanese and
    Korean give single characters.
    """
    text = normalise(text)
    if "'" in text or '"' in text or not text.isascii():
        text = _INCH_MARK.sub(" in ", text)
        text = _FOOT_MARK.sub(" ft ", text)
        # Cutting an apostrophe can bring a letter and an accent together.
        text = unicodedata.normalize("NFKC", _POSSESSIVE.sub("", text))
    if "," in text:
        text = _THOUSANDS.sub("", text)
    text = _ATTACHED_UNIT.sub(_unit, text)
    tokens = [_canonical(token) for token in _TOKEN.findall(text)]
    if text.isascii():
        return tokens
    return [part for token in tokens for part in _characters(token)]


def _unit(match: re.Match[str]) -> str:
    return _UNIT_OF_LETTER[match[0]]


def _characters(token: str) -> Iterable[str]:
    """The characters of a run of a script without spaces; other tokens unchanged."""
    if _CJK_START.match(token) is None:
        return (token,)
    return token


@lru_cache(MAX_CACHED_WORDS)
def _canonical(token: str) -> str:
    """One spelling for each word: plural endings cut, units and a few irregular words mapped.

    Repeated until nothing changes, so that a canonical word stays what it is.
    """
    while True:
        shorter = _SPELLINGS.get(token) or _singular(token)
        if shorter == token:
            return token
        token = shorter


def _singular(word: str) -> str:
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1]


def item_text(row: Mapping[str, Any]) -> str:
    """What encoder and lexical index read of an item: its title, and its brand unless named there.

    `row` is a row of the items table (`title`, optional `brand`).
    """
    title = str(row["title"])
    brand = row.get("brand")
    if not brand or normalise(str(brand)) in normalise(title):
        return title
    return f"{title} {brand}"
