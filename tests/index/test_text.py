"""Text: the normal form, the product tokenizer and the text of an item."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from index.text import item_text, normalise, words

PRODUCT_TEXT = st.text(st.sampled_from(" 0123456789./,-x'\"’″swvaineft½é\u0301ßΣ广हि\u200b\x00"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Steel\tPIPE\n", "steel pipe"),
        ("ＡＢＣ １２", "abc 12"),
        ("soft\u00adhyphen zero\u200bwidth \ufeffmark", "softhyphen zerowidth mark"),
        ("a\x00b\x85c\u2028d", "a b c d"),
        ("Straße", "strasse"),
        ("1½ in", "1 1/2 in"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text() | PRODUCT_TEXT)
@example("ᾼͅ")
@example("İΐ")
def test_normalise_is_idempotent_and_clean(text: str) -> None:
    result = normalise(text)
    assert normalise(result) == result
    assert result == " ".join(result.split())
    assert not [c for c in result if unicodedata.category(c) in {"Cc", "Cf", "Cs"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/2in. pipe", "1/2 in pipe"),
        ("2-1/2 in", "2 1/2 in"),
        ("1½ inches", "1 1/2 in"),
        ("2x4", "2 x 4"),
        ("3.5gal .75 hp", "3.5 gal .75 hp"),
        ("1,000 sq. ft., 2,50", "1000 sq ft 2 50"),
        ("6' 4\" x 8'6", "6 ft 4 in x 8 ft 6"),
        ("5 ″ and 4''", "5 in and 4 in"),
        ("Men's Gloves Bell'O", "men glove bello"),
        ("60W bulb, 24 in. W", "60 watt bulb 24 in w"),
        ("18-Volt 18v 15A", "18 volt 18 volt 15 amp"),
        ("Boxes Batteries Brushes Glasses Shelves", "box battery brush glass shelf"),
        ("brass gas bus lens", "brass gas bus len"),
        ("#SC-141 M18", "sc 141 m 18"),
        ("10 square feet 3 gallons 5 lbs", "10 sq ft 3 gal 5 lb"),
        ("1/2/3 1.2.3", "1 2/3 1.2 .3"),
        ("高级legging2", "高 级 legging 2"),
        ("हिन्दी", "हिन्दी"),
        ("!!! ...", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == expected.split()


@given(st.text() | PRODUCT_TEXT)
def test_words_survive_joining(text: str) -> None:
    found = words(text)
    assert words(" ".join(found)) == found
    assert words(normalise(text)) == found


@pytest.mark.parametrize(
    ("title", "brand", "expected"),
    [
        ("Delta Vero Faucet", "DELTA", "Delta Vero Faucet"),
        ("Vero Faucet", "Delta", "Vero Faucet Delta"),
        ("Vero Faucet", None, "Vero Faucet"),
        ("Vero Faucet", "", "Vero Faucet"),
    ],
)
def test_item_text(title: str, brand: str | None, expected: str) -> None:
    assert item_text({"title": title, "brand": brand}) == expected


def test_item_text_without_brand_column() -> None:
    assert item_text({"title": "Hammer"}) == "Hammer"
