import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.spelling import MIN_SIMILARITY, Spellings


def near(word: str, *vocabulary: str) -> dict[str, float]:
    numbers, similarity = Spellings.of(vocabulary).near(word)
    return {vocabulary[n]: float(s) for n, s in zip(numbers, similarity, strict=True)}


def dice(one: str, other: str) -> float:
    first, second = ({f"^{word}$"[i : i + 3] for i in range(len(word))} for word in (one, other))
    return 2 * len(first & second) / (len(first) + len(second))


def test_slips_compounds_and_forms_are_near():
    found = near("faucet", "faucet", "faucets", "fauscet", "face", "tap")
    assert found["faucet"] == 1.0
    assert {"faucets", "fauscet"} < set(found)
    assert not {"face", "tap"} & set(found)
    assert "light" in near("lights", "light", "lamp")


def test_numbers_are_near_to_nothing():
    assert near("100", "100", "1000", "10") == {}
    assert near("x100", "x1000") == {}


def test_an_empty_vocabulary_and_an_empty_word():
    assert near("lamp") == {}
    assert near("", "lamp") == {}
    assert near("lamp", "", "4") == {}
    assert near("𝔵é字", "𝔵é字") == {"𝔵é字": pytest.approx(1.0)}


@given(st.text("abc", min_size=1, max_size=6), st.sets(st.text("abcd", min_size=1, max_size=6)))
def test_similarity_is_dice_of_trigrams(word: str, vocabulary: set[str]):
    expected = {other: dice(word, other) for other in vocabulary}
    expected = {other: s for other, s in expected.items() if s >= MIN_SIMILARITY}
    assert near(word, *sorted(vocabulary)) == pytest.approx(expected)


def test_look_ups_are_remembered():
    spellings = Spellings.of(["lamp", "lamps"])
    first, again = spellings.near("lamp"), spellings.near("lamp")
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert np.all(first[1] <= 1)
