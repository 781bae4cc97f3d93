"""User SIDs by hand, at the edges, and in prompts."""

from __future__ import annotations

from math import ceil, exp, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.sid import SidLayout
from models.prompt import PromptBuilder, PromptSettings
from models.tokenizer import USER, Tokenizer
from models.user_sid import SHORT_WINDOW, sequence_sid, user_sids


def test_two_items_by_hand() -> None:
    """exp(1) = 2.71828, exp(√2) = 4.11325: λ = (0.39790, 0.60210)."""
    found = sequence_sid(np.array([[10, 0, 7], [20, 3, 0]]))
    # 3.979 + 12.042 = 16.021; 1.806; 2.785
    assert found.tolist() == [17, 2, 3]
    assert found.dtype == np.int32


def test_three_items_by_the_formula() -> None:
    codes = [[3, 60], [9, 1], [4, 2]]
    weights = [exp(sqrt(i)) for i in (1, 2, 3)]
    expected = [
        ceil(sum(w * row[level] for w, row in zip(weights, codes, strict=True)) / sum(weights))
        for level in (0, 1)
    ]
    assert sequence_sid(np.array(codes)).tolist() == expected


@pytest.mark.parametrize("count", [1, 2, 3, 7, 999])
def test_equal_codes_stay_what_they_are(count: int) -> None:
    """The weights sum to 1 only up to rounding; ⌈11.000000001⌉ would be another code."""
    assert sequence_sid(np.full((count, 2), 11)).tolist() == [11, 11]


@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=30))
def test_the_sid_is_between_the_smallest_and_the_largest_code(rows: list[tuple[int, int]]) -> None:
    table = np.array(rows)
    found = sequence_sid(table)
    assert (found >= table.min(axis=0)).all()
    assert (found <= table.max(axis=0)).all()


def test_short_and_long_sequence() -> None:
    codes = np.arange(12)[:, None] * np.array([1, 2])
    short, long = user_sids(codes)
    assert short.tolist() == sequence_sid(codes[-SHORT_WINDOW:]).tolist()
    assert long.tolist() == sequence_sid(codes).tolist()
    assert (short > long).all()


def test_cold_users_get_the_querys_items() -> None:
    cold = np.array([[1, 2], [3, 4]])
    assert user_sids((), cold).tolist() == [sequence_sid(cold).tolist()] * 2
    assert user_sids(cold[:1], cold[1:]).tolist() == [[1, 2], [1, 2]]
    assert len(user_sids(())) == 0


def test_prompts_have_them_when_the_checkpoint_says_so() -> None:
    tokenizer = Tokenizer.train(["oak desk"], 280, layout=SidLayout((8, 4)))
    history = np.array([[1, 1], [2, 1], [3, 3], [7, 0], [5, 2], [6, 2]], np.int32)
    words = tokenizer.encode_text("oak desk")
    plain = PromptBuilder(tokenizer, PromptSettings())
    personal = PromptBuilder(tokenizer, PromptSettings(user_sid=True))
    without = plain.student(words, (1, 2), history).tolist()
    with_user = personal.student(words, (1, 2), history).tolist()
    short, long = user_sids(history)
    span = [
        tokenizer.special[USER],
        *tokenizer.sid_tokens(short.tolist()),
        *tokenizer.sid_tokens(long.tolist()),
    ]
    assert with_user == [*span, *without]
    assert personal.student(words, (1, 2)).tolist() == plain.student(words, (1, 2)).tolist()
    assert len(with_user) <= personal.max_tokens
    given_one = personal.student(words, (1, 2), history, [[0, 0], [1, 1]]).tolist()
    assert given_one[1:3] == tokenizer.sid_tokens((0, 0))
