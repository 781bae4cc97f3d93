"""What a query refuses and how far the refusal reaches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.text import normalise
from server.keywords.negation import split_negations

COMPOUNDS = {("non", "slip"), ("no", "dig"), ("无", "线"), ("bpa", "free"), ("免", "洗")}
PHRASES = ("stainless steel", "leather", "lid", "皮革", "塑料")


def known(cue: str, word: str) -> bool:
    return (cue, word) in COMPOUNDS


def longest(text: str) -> int:
    return max((len(phrase) for phrase in PHRASES if text.startswith(phrase)), default=0)


@pytest.mark.parametrize(
    ("query", "kept", "refused"),
    [
        ("relieve fatigue, no supplements", "relieve fatigue", ("supplements",)),
        ("desk without drawers for kids", "desk for kids", ("drawers",)),
        ("rug not wool or silk", "rug", ("wool", "silk")),
        ("pan without lid and handle", "pan", ("lid", "handle")),
        ("boots not black and waterproof", "boots and waterproof", ("black",)),
        ("kettle, not from acme", "kettle", ("acme",)),
        ("mug not made of stainless steel", "mug", ("stainless steel",)),
        ("no leather belt", "belt", ("leather",)),
        ("black belt non leather for men", "black belt for men", ("leather",)),
        ("cable w/o connector", "cable", ("connector",)),
        ("anything but leather", "", ("leather",)),
        ("sofa i don't want leather", "sofa", ("leather",)),
        ("phone case instead of a wallet", "phone case", ("wallet",)),
        ("lactose free milk", "milk", ("lactose",)),
        ("lamp not too big", "lamp", ("big",)),
        ("沙发 不要皮革", "沙发", ("皮革",)),
        ("不含酒精的爽肤水", "的爽肤水", ("酒精",)),
        ("水杯不要塑料和玻璃", "水杯", ("塑料", "玻璃")),
        ("软底不带鞋带皮革", "软底 皮革", ("鞋带",)),
        ("除了黑色以外的包", "以外的包", ("黑色",)),
    ],
)
def test_refusals(query: str, kept: str, refused: tuple[str, ...]) -> None:
    split = split_negations(query, known, longest)
    assert split.refused == refused
    assert split.kept == kept


@pytest.mark.parametrize(
    "query",
    [
        "non slip mat",
        "non-slip mat",
        "no dig fence",
        "bpa free bottle",
        "bpa-free bottle",
        "hands free phone",
        "free standing bath",
        "no 5 perfume",
        "knot pillow",
        "norwegian cannon",
        "无线耳机",
        "不锈钢锅",
        "免洗裤子",
        "有没有台灯",
        "非洲菊",
        "no",
        "not",
        "without",
        "不要",
        "",
    ],
)
def test_no_refusal(query: str) -> None:
    split = split_negations(query, known, longest)
    assert split.refused == ()
    assert split.kept == query


CUES = ["no", "not", "without", "non-", "free", "instead of", "don't", "不要", "无"]
OTHERS = ["red", "or", "and", ",", "shoes", "for", "红色", "的", "x", "-", "lid", "steel", "/"]


@given(st.lists(st.sampled_from(CUES + OTHERS), max_size=10))
def test_kept_and_refused_are_words_of_the_text(parts: list[str]) -> None:
    text = normalise(" ".join(parts))
    split = split_negations(text, known, longest)
    for phrase in split.refused:
        assert phrase.strip() == phrase != ""
        assert all(word in text for word in phrase.split())
    assert all(word in text for word in split.kept.split())
    assert len(split.kept) + sum(map(len, split.refused)) <= len(text)


@given(st.text(max_size=60))
def test_any_text_is_split(text: str) -> None:
    split_negations(normalise(text), known, longest)
