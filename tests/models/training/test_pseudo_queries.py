import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.text import words
from models.training import pseudo_queries
from models.training.pseudo_queries import (
    MAX_LENGTH,
    PRIOR_LENGTHS,
    PRIOR_PROPENSITY,
    PseudoQueryModel,
    fit,
    slip,
)

TITLE = words("Acme 18 volt cordless drill with case and charger")
PAIRS = [
    (words("cordless drill"), TITLE),
    (words("driver"), TITLE),
    (words("drill driver"), TITLE),
    (words("oak desk"), words("Nord solid oak desk with drawer")),
    (words("table"), words("Nord solid oak desk with drawer")),
    (words("desk table"), words("Nord white desk")),
    *[(words(f"lamp {n}"), words(f"Lux lamp number {n}")) for n in range(20)],
]


def drawn(model: PseudoQueryModel, title: list[str], count: int, seed: int = 0) -> list[str]:
    return model.sample([title] * count, np.random.default_rng(seed))


@pytest.fixture
def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """No slips, no joined words: every word of a query is then one of the tables'."""
    monkeypatch.setattr(pseudo_queries, "SLIP_SHARE", 0.0)
    monkeypatch.setattr(pseudo_queries, "JOIN_SHARE", 0.0)


def test_a_seed_decides_everything():
    first, second = (drawn(fit(PAIRS), TITLE, 300, seed=4) for _ in range(2))
    assert first == second
    assert drawn(fit(PAIRS), TITLE, 300, seed=5) != first


@pytest.mark.usefixtures("without_noise")
def test_words_come_from_title_and_translations():
    model = fit(PAIRS)
    translated = {word for entry in model.translations.values() for word in entry[0]}
    assert translated == {"driver", "table"}
    found = {word for query in drawn(model, TITLE, 2000) for word in query.split()}
    assert found == set(TITLE) | {"driver"}


def test_noise_only_ever_changes_or_joins_words():
    found = drawn(fit(PAIRS), TITLE, 4000)
    strange = {word for query in found for word in query.split()} - set(TITLE) - {"driver"}
    share = sum(bool(set(query.split()) & strange) for query in found) / len(found)
    assert 0.02 < share < pseudo_queries.SLIP_SHARE + pseudo_queries.JOIN_SHARE + 0.01
    letters = set("".join(TITLE)) | set("driver")
    assert any(set(word) <= letters for word in strange)


def test_propensity_is_the_smoothed_share():
    model = fit([(["drill"], ["acme", "drill"])] * 24)
    mean = (24 + 8 * PRIOR_PROPENSITY) / (48 + 8)
    assert model.propensity["drill"] == pytest.approx((24 + 8 * mean) / (24 + 8))
    assert model.propensity["acme"] == pytest.approx(8 * mean / (24 + 8))


def test_words_that_people_type_are_drawn_more_often():
    model = fit([(["drill"], ["acme", "grey", "drill", "new"])] * 200)
    found = [
        word for query in drawn(model, ["acme", "grey", "drill", "new"], 500) for word in query
    ]
    queries = drawn(model, ["acme", "grey", "drill", "new"], 500)
    with_drill = sum("drill" in query.split() for query in queries)
    assert with_drill > 2 * sum("acme" in query.split() for query in queries)
    assert found


def test_a_translation_needs_count_and_lift():
    filler = [([f"q{n}"], [f"t{n}"]) for n in range(30)]
    often = [(["sofa"], ["couch"])] * 2
    assert fit([*filler, *often]).translations["couch"][0] == ["sofa"]
    assert "couch" not in fit([*filler, *often[:1]]).translations
    everywhere = [(["cheap"], [f"t{n}"]) for n in range(30) for _ in range(2)]
    assert not fit(everywhere).translations


@pytest.mark.usefixtures("without_noise")
@given(
    title=st.lists(st.sampled_from(["oak", "desk", "red", "14", "x"]), max_size=30),
    seed=st.integers(0, 1000),
)
def test_lengths(title: list[str], seed: int):
    model = fit(PAIRS)
    for query in drawn(model, title, 5, seed):
        found = query.split()
        # One word more: a translation may be added.
        assert len(found) <= min(len(title), MAX_LENGTH) + 1
        assert bool(found) == bool(title)


def test_lengths_follow_the_queries():
    long = fit([(["a"] * 7, ["t"])] * 500)
    assert np.mean(long.lengths == 7) > 0.9
    assert fit([(["a"] * 40, ["t"])]).lengths.max() == MAX_LENGTH
    assert sorted(set(fit([]).lengths.tolist())) == sorted(PRIOR_LENGTHS)


@pytest.mark.usefixtures("without_noise")
def test_works_without_any_pairs():
    model = fit([])
    assert not model.translations
    queries = drawn(model, TITLE, 1000)
    assert {word for query in queries for word in query.split()} == set(TITLE)
    lengths = [len(query.split()) for query in queries]
    assert min(lengths) == 1
    assert max(lengths) <= max(PRIOR_LENGTHS)
    early = sum(TITLE[0] in query.split() for query in queries)
    late = sum(TITLE[-1] in query.split() for query in queries)
    assert early > late


def test_empty_titles_and_no_titles():
    model = fit(PAIRS)
    found = model.sample([[], TITLE, []], np.random.default_rng(0))
    assert (found[0], found[2]) == ("", "")
    assert found[1]
    assert model.sample([], np.random.default_rng(0)) == []


def test_any_script():
    title = words("Ölheizung für Räume 暖房 обогреватель")
    pairs = [(words("暖房"), title), (words("öl heizung"), title)]
    queries = drawn(fit(pairs), title, 500)
    assert all(queries)
    assert any("обогреватель" in query for query in queries)


@given(st.text(max_size=12), st.integers(0, 100))
def test_a_slip_is_small(word: str, seed: int):
    slipped = slip(word, np.random.default_rng(seed))
    assert abs(len(slipped) - len(word)) <= 1
    assert slipped[:1] == word[:1]
    if len(word) < 4 or not word.isalpha():
        assert slipped == word
