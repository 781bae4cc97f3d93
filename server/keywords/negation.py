"""What a query says it does not want: which words, and how far the refusal reaches.

    "relieve fatigue, no supplements"      → refuses "supplements", keeps "relieve fatigue"
    "non slip bath mat"                    → refuses nothing if the catalogue knows "non slip"

A cue ("without", "no", "不要") opens a scope, which ends at punctuation, at a word that starts
another wish ("for", "but", "under"), or with the text. Weak cues are parts of product names as
often as not, so the catalogue is asked whether it has the cue with the word that follows.

Invariant: what is refused and what is kept are disjoint pieces of the text; cues are in neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from server.keywords.cues import (
    ALTERNATIVE_TO,
    CHINESE_COMPOUNDS,
    CHINESE_STOP,
    ENGLISH_COMPOUNDS,
    FREE_SUFFIX,
    NOT_FREE_OF,
    SCOPE_END,
    SCOPE_JOIN,
    STOP_WORDS,
    STRONG_NEGATION,
    WEAK_NEGATION,
)

# A refusal that goes on for longer than this has run into the next wish.
MAX_REFUSED_WORDS = 4
MAX_REFUSED_CHARACTERS = 6
# A comma joins refusals only if what follows it is this short and starts with a cue.
_GAP = re.compile(r"[\s,，、]*")
_WORD = re.compile(r"[^\s,;]+")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_ALTERNATIVE = re.compile(ALTERNATIVE_TO, re.VERBOSE)

Known = Callable[[str, str], bool]
"""(cue, next word or characters) → whether the catalogue writes them together."""
Longest = Callable[[str], int]
"""Length of the longest catalogue phrase that a text starts with, 0 if there is none."""


class Split(NamedTuple):
    """`kept`: the text without refusals, a space in their place. `refused`: phrases, in order."""

    kept: str
    refused: tuple[str, ...]

    @property
    def negated(self) -> bool:
        return bool(self.refused)


class _Cue(NamedTuple):
    start: int
    end: int
    weak: bool
    single: bool
    """Reaches one phrase only: "non leather black belt"."""


def split_negations(text: str, known: Known, longest: Longest) -> Split:
    """Split a text in normal form into what it asks for and what it refuses."""
    cut: list[tuple[int, int]] = []
    refused: list[str] = []
    text, refused_free = _without_free(text, known)
    refused += refused_free
    position = 0
    while cue := _next_cue(text, position, known):
        end = _scope_end(text, cue)
        scope = text[cue.end : end]
        rest_is_empty = not _content(text[: cue.start]) and not _content(text[end:])
        phrases, used = _phrases(scope, longest, first_only=cue.single or rest_is_empty)
        if phrases:
            refused += phrases
            cut.append((cue.start, cue.end + used))
        position = max(cue.end + used, cue.end)
    return Split(_kept(text, cut), tuple(dict.fromkeys(refused)))


def _kept(text: str, cut: Sequence[tuple[int, int]]) -> str:
    parts: list[str] = []
    start = 0
    for first, last in cut:
        parts.append(text[start:first])
        start = last
    parts.append(text[start:])
    return " ".join(" ".join(parts).split()).strip(" ,;，、")


def _next_cue(text: str, position: int, known: Known) -> _Cue | None:
    while True:
        strong = STRONG_NEGATION.search(text, position)
        weak = WEAK_NEGATION.search(text, position)
        if strong is None and weak is None:
            return None
        if weak is None or (strong is not None and strong.start() <= weak.start()):
            assert strong is not None
            reference = _ALTERNATIVE.match(text, strong.start()) is not None
            return _Cue(strong.start(), strong.end(), False, reference)
        if not _is_compound(text, weak, known):
            single = weak[0].startswith("non") or _CJK.match(weak[0]) is not None
            return _Cue(weak.start(), weak.end(), True, single)
        position = weak.end()


def _is_compound(text: str, cue: re.Match[str], known: Known) -> bool:
    """Whether a weak cue belongs to a product word, or has nothing to refuse."""
    rest = text[cue.end() :].lstrip(" -")
    if not rest:
        return True
    if _CJK.match(cue[0]):
        following = rest[0]
        if not _CJK.match(following):
            return True
        return cue[0] + following in CHINESE_COMPOUNDS or known(cue[0], following)
    found = _WORD.match(rest)
    if found is None:
        return True
    word = found[0]
    bare = cue[0].rstrip("-")
    if cue[0] == "not":
        return False
    phrase = f"{bare} {word}"
    return (
        any(phrase == item or item.startswith(phrase + " ") for item in ENGLISH_COMPOUNDS)
        or (bare == "no" and word.isdigit())
        or known(bare, word)
    )


def _without_free(text: str, known: Known) -> tuple[str, list[str]]:
    """Cut "lactose free", unless the catalogue sells it by that name."""
    refused: list[str] = []
    while True:
        for found in FREE_SUFFIX.finditer(text):
            phrase = found[1]
            word = phrase.split()[-1]
            following = _WORD.match(text, found.end() + 1)
            if word in STOP_WORDS or word in NOT_FREE_OF or known(word, "free"):
                continue
            if following is not None and known("free", following[0]):
                continue
            start = found.end(1) - len(word)
            refused.append(word)
            text = " ".join((text[:start] + " " + text[found.end() :]).split())
            break
        else:
            return text, refused


def _scope_end(text: str, cue: _Cue) -> int:
    end = len(text)
    for boundary in SCOPE_END.finditer(text, cue.end):
        if text[cue.end : boundary.start()].strip():
            end = boundary.start()
            break
    following = STRONG_NEGATION.search(text, cue.end, end)
    if following is not None and text[cue.end : following.start()].strip():
        end = following.start()
    if not cue.weak or text[cue.start : cue.end] != "not":
        return end
    conjunction = re.compile(r"\s(?:and|&)\s").search(text, cue.end, end)
    return conjunction.start() if conjunction else end


def _phrases(scope: str, longest: Longest, *, first_only: bool) -> tuple[list[str], int]:
    """Refused phrases and how many characters of the scope they take."""
    phrases: list[str] = []
    position = 0
    while position < len(scope):
        joined = SCOPE_JOIN.search(scope, position)
        if joined is not None and joined.end() == joined.start():
            joined = None
        last = joined.start() if joined else len(scope)
        phrase, end = _phrase(scope, position, last, longest, first_only=first_only)
        if not phrase:
            if joined is None:
                break
            position = joined.end()
            continue
        phrases.append(phrase)
        position = end
        # Only an unbroken list goes on: "no wool or silk".
        if joined is None or scope[end:last].strip():
            break
        position = joined.end()
    return phrases, position if phrases else 0


def _phrase(
    scope: str, start: int, last: int, longest: Longest, *, first_only: bool
) -> tuple[str, int]:
    """One refused phrase of scope[start:last] and where it ends; "" if there is none."""
    gap = _GAP.match(scope, start)
    position = min(gap.end() if gap else start, last)
    while found := _leading_stop(scope, position, last):
        position = found
    whole = scope[position:last].strip()
    if not whole:
        return "", start
    size = len(_CJK.findall(whole)) if _CJK.search(whole) else 0
    too_long = len(whole.split()) > MAX_REFUSED_WORDS or size > MAX_REFUSED_CHARACTERS
    if not _content(whole):
        return "", start
    if _CJK.match(whole) and not longest(whole):
        # Without spaces a known word tells where the refused one ends: "不带鞋带|男士".
        reach = range(2, min(len(whole), MAX_REFUSED_CHARACTERS + 1))
        known_at = [i for i in reach if longest(whole[i:])]
        if known_at:
            start = scope.index(whole, position)
            return whole[: known_at[0]].strip(), start + known_at[0]
    if not (first_only or too_long):
        return whole, last
    length = longest(scope[position:last])
    if length:
        return scope[position : position + length].strip(), position + length
    if _CJK.match(scope, position):
        end = min(position + 2, last)
        return scope[position:end].strip(), end
    word = _WORD.match(scope, position)
    assert word is not None
    return word[0], word.end()


def _leading_stop(scope: str, position: int, last: int) -> int:
    """Where the text goes on after one leading stop word, 0 if there is none."""
    word = re.compile(r"\s*([a-z']+)\s+").match(scope, position, last)
    if word is not None and word[1] in STOP_WORDS:
        return word.end()
    chinese = re.compile(r"\s*(?:有|是|带|含|用|要|想要|任何|太|那种|这种)").match(
        scope, position, last
    )
    return chinese.end() if chinese is not None and chinese.end() < last else 0


def _content(text: str) -> bool:
    """Whether a piece of text names anything."""
    text = CHINESE_STOP.sub(" ", text)
    found = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text)
    return any(word not in STOP_WORDS for word in found)
