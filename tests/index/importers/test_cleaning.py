"""Cells: what is mended, what is dropped with a warning, what rejects its row."""

import math
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.importers import cleaning
from index.importers.cleaning import FieldError


class Warnings(list[tuple[str, str]]):
    def __call__(self, field: str, reason: str) -> None:
        self.append((field, reason))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Briggs &amp; Stratton", "Briggs & Stratton"),
        ("3&quot; pipe &#38; &frac12; in", '3" pipe & ½ in'),
        ("A &amp;amp; B", "A & B"),
        ("<b>Bold</b> text<br/>here", "Bold text here"),
        ("&lt;p&gt;inner&lt;/p&gt;", "inner"),
        ("x <!-- .style {a} --> y", "x y"),
        ("a<script>alert(1)</script>b<style>p{}", "a b"),
        ("5 < 6 and 7 > 3", "5 < 6 and 7 > 3"),
        ("tab\tline\nnull\x00bell\x07", "tab line null bell"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("  many   spaces ", "many spaces"),
    ],
)
def test_clean_text(text: str, expected: str) -> None:
    assert cleaning.clean_text(text) == expected


@given(st.text())
def test_clean_text_has_no_control_characters(text: str) -> None:
    result = cleaning.clean_text(text)
    assert result == " ".join(result.split())
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in result)
    result.encode("utf-8")


@pytest.mark.parametrize(("value", "expected"), [(" a1 ", "a1"), (7, "7"), (7.0, "7")])
def test_read_id(value: object, expected: str) -> None:
    assert cleaning.read_id("item_id", value) == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing"),
        ("  ", "missing"),
        (True, "not text"),
        (["a"], "not text"),
        (1.5, "not text"),
        ("x" * 201, "too long"),
        ("a\x00b", "control characters"),
    ],
)
def test_bad_ids(value: object, reason: str) -> None:
    with pytest.raises(FieldError, match=f"item_id: {reason}"):
        cleaning.read_id("item_id", value)


def test_titles_are_cut_at_the_limit() -> None:
    warnings = Warnings()
    assert len(cleaning.read_title("title", "x" * 1000, warnings)) == 1000
    assert not warnings
    assert len(cleaning.read_title("title", "x" * 1001, warnings)) == 1000
    assert warnings == [("title", "too long, cut")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "missing"), ("", "empty"), (" <br> ", "empty"), ({}, "not text"), (True, "not text")],
)
def test_bad_titles(value: object, reason: str) -> None:
    with pytest.raises(FieldError, match=reason):
        cleaning.read_title("title", value, Warnings())


def test_queries() -> None:
    assert cleaning.read_query("query", " a &amp; b ") == "a & b"
    assert cleaning.read_query("query", " ") is None
    with pytest.raises(FieldError, match="too long"):
        cleaning.read_query("query", "x" * 501)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0),
        ("2.5", 2.5),
        ("$1,299.00", 1299.0),
        ("12 EUR", 12.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("", None),
        ("N/A", None),
        (None, None),
        (0, 0.0),
    ],
)
def test_quantities(value: object, expected: float | None) -> None:
    warnings = Warnings()
    assert cleaning.read_quantity("price", value, warnings) == expected
    assert not warnings


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-1, "negative"),
        ("-0.01", "negative"),
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        ("inf", "not finite"),
        ("NaN", "not finite"),
        ("1e999", "not finite"),
        ("cheap", "not a number"),
        ("1_000", "not a number"),
        (True, "not a number"),
        ([1], "not a number"),
        (10**400, "not a number"),
    ],
)
def test_bad_quantities_are_dropped(value: object, reason: str) -> None:
    warnings = Warnings()
    assert cleaning.read_quantity("price", value, warnings) is None
    assert warnings == [("price", f"{reason}, dropped")]


def test_counts() -> None:
    warnings = Warnings()
    assert cleaning.read_count("position", "3", warnings, least=1) == 3
    assert not warnings
    assert cleaning.read_count("position", 0, warnings, least=1) is None
    assert cleaning.read_count("position", 1.5, warnings) is None
    assert cleaning.read_count("position", 1e18, warnings) is None
    assert len(warnings) == 3


@pytest.mark.parametrize("value", [None, "", "x", math.nan, "inf", True])
def test_grades_must_be_finite(value: object) -> None:
    with pytest.raises(FieldError, match="grade"):
        cleaning.read_required_number("grade", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (12, 12.0),
        ("12.5", 12.5),
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-02", 86400.0),
        (datetime(1970, 1, 1, 0, 1), 60.0),
        (datetime(1970, 1, 1, 0, 1, tzinfo=UTC), 60.0),
        (date(1970, 1, 2), 86400.0),
    ],
)
def test_times(value: object, expected: float) -> None:
    assert cleaning.read_time("time", value) == expected


@pytest.mark.parametrize("value", [None, "yesterday", "2020-13-01", math.inf])
def test_bad_times(value: object) -> None:
    with pytest.raises(FieldError, match="time"):
        cleaning.read_time("time", value)


def test_values_are_split_cleaned_and_limited() -> None:
    warnings = Warnings()
    read = cleaning.read_values
    assert read("color", "red| &amp; |red|", "|", warnings) == ["red", "&"]
    assert read("category", "A > B", ">", warnings) == ["A", "B"]
    assert read("color", ["red", None, "blue"], "|", warnings) == ["red", "blue"]
    assert read("color", 5, "|", warnings) == ["5"]
    assert read("color", " ", "|", warnings) is None
    assert not warnings
    assert read("color", [{}, "ok"], "|", warnings) == ["ok"]
    assert len(read("color", [str(n) for n in range(65)], "|", warnings) or []) == 64
    assert warnings == [("color", "not text, dropped"), ("color", "too many values, cut")]


def test_attributes_come_in_three_forms() -> None:
    warnings = Warnings()
    read = cleaning.read_attributes
    expected = {"size": ["m"]}
    assert read("attributes", {"size": ["m"]}, warnings) == expected
    assert read("attributes", [("size", ["m"])], warnings) == expected
    assert read("attributes", '{"size": ["m"]}', warnings) == expected
    assert read("attributes", "", warnings) == {}
    assert not warnings
    for bad in ("{", "[1]", 5):
        assert read("attributes", bad, warnings) == {}
    assert len(warnings) == 3
