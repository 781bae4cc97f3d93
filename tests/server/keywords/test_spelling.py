"""Corrections of unknown words."""

from __future__ import annotations

import pytest

from index.lexical import LexicalIndex
from server.keywords.spelling import Spelling

TITLES = ["oak toilet seat", "brass toilet lever", "shower faucet brass"] * 6 + ["bronze tailet"]


@pytest.fixture(scope="module")
def spelling() -> Spelling:
    return Spelling(LexicalIndex.build(TITLES), frozenset(["zyloba"]))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("toliet seat", "toilet seat"),
        ("toilett seat", "toilet seat"),
        ("shwer fauet", "shower faucet"),
        ("toilets", "toilets"),
        ("tolets", "toilets"),
        ("showerfaucet", "shower faucet"),
        ("oka seat", "oak seat"),
        ("withuot lever", "without lever"),
        ("zyloba lever", "zyloba lever"),
        ("zylobs lever", "zyloba lever"),
        ("xk450 seat", "xk450 seat"),
        ("unrelated words", "unrelated words"),
        ("tailet", "tailet"),
        ("座便器 toliet", "座便器 toilet"),
        ("", ""),
    ],
)
def test_one_edit(spelling: Spelling, typed: str, meant: str) -> None:
    assert spelling.correct(typed) == meant


def test_the_word_that_fits_the_others_wins() -> None:
    titles = ["garden hose"] * 5 + ["stone house"] * 50
    spelling = Spelling(LexicalIndex.build(titles), frozenset())
    assert spelling.correct("garden hse") == "garden hose"
    assert spelling.correct("stone hose") == "stone hose"
    assert spelling.correct("stone houes") == "stone house"


def test_rare_words_are_no_corrections() -> None:
    spelling = Spelling(LexicalIndex.build(["lamp"] * 9 + ["gizmox"]), frozenset())
    assert spelling.correct("gizmo") == "gizmo"
