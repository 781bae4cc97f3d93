import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.engine import Hypotheses, Prompt
from decoding.errors import DeadlineExceeded
from decoding.native.runner import Runner, Search
from decoding.reference import brute_force, stepwise_beam
from index.errors import ArtifactError, ConfigError
from index.sid import SidLayout
from index.trie import Trie

TOLERANCE = 1e-4


def random_prompt(random: np.random.Generator, *, prior: bool = False) -> Prompt:
    token_ids = random.integers(0, 40, random.integers(1, 12)).astype(np.int32)
    table = tuple(random.normal(0, 2, 16).astype(np.float32) for _ in range(3)) if prior else None
    return Prompt(token_ids, table)


def check_equal(found: Hypotheses, expected: list[tuple[tuple[int, ...], float]]) -> None:
    """Scores agree; SIDs agree wherever a neighbour's score is not nearer than the tolerance."""
    assert len(found) == len(expected)
    scores = np.array([score for _, score in expected])
    np.testing.assert_allclose(found.scores, scores, atol=TOLERANCE)
    gaps = np.abs(np.diff(scores, prepend=np.inf, append=-np.inf))
    clear = np.minimum(gaps[:-1], gaps[1:]) > 2 * TOLERANCE
    for row in np.flatnonzero(clear[:-1]):  # The last may have lost to one that is not shown.
        assert tuple(found.codes[row].tolist()) == expected[row][0]


def check_sound(found: Hypotheses, trie: Trie, allowed: np.ndarray | None) -> None:
    assert np.array_equal(trie.codes_of_leaves(found.leaves), found.codes)
    assert len(np.unique(found.leaves)) == len(found)
    assert allowed is None or bool(allowed[found.leaves].all())
    assert bool((np.diff(found.scores) <= 0).all())
    np.testing.assert_allclose(found.level_scores.sum(1), found.scores, atol=1e-5)
    assert found.codes.shape == found.level_scores.shape == found.branching.shape
    assert found.codes.dtype == found.branching.dtype == np.int32


@given(
    seed=st.integers(0, 2**32 - 1),
    sids=st.integers(1, 60),
    kept=st.sampled_from([None, 0.5, 0.1, 0.0]),
    prior=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_a_beam_of_all_sids_equals_brute_force(decoder, make_trie, seed, sids, kept, prior):
    random, trie = np.random.default_rng(seed), make_trie(seed, sids)
    mask = None if kept is None else random.random(trie.n_leaves) < kept
    filter = None if mask is None else trie.filter(mask)
    prompt = random_prompt(random, prior=prior)
    (found,) = decoder.runner(trie).search_batch([prompt], trie.n_leaves, filter)
    check_equal(found, brute_force(decoder.oracle, trie, prompt, filter))
    check_sound(found, trie, mask)
    assert found.complete == (filter is None or filter.n_leaves == trie.n_leaves)


@given(seed=st.integers(0, 2**32 - 1), sids=st.integers(1, 60))
@settings(max_examples=12, deadline=None)
def test_a_wave_of_mixed_searches_equals_stepwise_beams(decoder, make_trie, seed, sids):
    random, trie = np.random.default_rng(seed), make_trie(seed, sids)
    searches, masks = [], []
    for _ in range(8):
        mask = random.random(trie.n_leaves) < random.choice([0.05, 0.4, 1.0])
        masks.append(mask if random.random() < 0.6 else None)
        filter = None if masks[-1] is None else trie.filter(mask)
        prompt = random_prompt(random, prior=random.random() < 0.5)
        searches.append(Search(prompt, int(random.integers(1, 12)), filter))
    results = decoder.runner(trie).run(searches)
    for search, mask, found in zip(searches, masks, results, strict=True):
        assert isinstance(found, Hypotheses)
        check_sound(found, trie, mask)
        expected = stepwise_beam(
            decoder.oracle, trie, search.prompt, search.beam_width, search.filter
        )
        check_equal(found, expected)
        assert found.complete == (len(expected) == search.beam_width)


@pytest.mark.parametrize("filtered", [False, True])
def test_beams_of_10_50_80_and_512_in_one_wave_are_each_exact(decoder, make_trie, filtered):
    random, trie = np.random.default_rng(8), make_trie(8, 1200)
    masks = [
        random.random(trie.n_leaves) < kept if filtered else None for kept in (1, 0.6, 0.3, 0.8)
    ]
    searches = [
        Search(
            random_prompt(random, prior=row == 1),
            width,
            None if mask is None else trie.filter(mask),
        )
        for row, (width, mask) in enumerate(zip((10, 50, 80, 512), masks, strict=True))
    ]
    results = decoder.runner(trie).run(searches)
    for search, mask, found in zip(searches, masks, results, strict=True):
        assert isinstance(found, Hypotheses)
        assert len(found) == search.beam_width
        check_sound(found, trie, mask)
        check_equal(
            found,
            stepwise_beam(decoder.oracle, trie, search.prompt, search.beam_width, search.filter),
        )


def test_bfloat16_is_legal_and_finds_nearly_the_same(make_decoder, make_trie):
    trie, random = make_trie(9, 1500), np.random.default_rng(9)
    exact, narrow = (
        make_decoder(dtype=dtype).runner(trie) for dtype in (torch.float32, torch.bfloat16)
    )
    prompts = [random_prompt(random) for _ in range(40)]
    overlap: list[float] = []
    pairs = zip(exact.search_batch(prompts, 50), narrow.search_batch(prompts, 50), strict=True)
    for truth, found in pairs:
        check_sound(found, trie, None)
        assert len(found) == len(truth) == 50
        overlap.append(len(np.intersect1d(found.leaves, truth.leaves)) / 50)
        # Full float32 logits: rounding the body to bfloat16 makes no ties.
        assert len(np.unique(found.scores)) > 45
    assert np.mean(overlap) > 0.9
    assert min(overlap) > 0.7


def test_a_wave_may_hold_tries_of_different_bases(decoder, make_trie):
    """As while a merged catalogue replaces the one that running searches began with."""
    old, new = make_trie(10, 300), make_trie(11, 400)
    runner, random = decoder.runner(old), np.random.default_rng(10)
    searches = [
        Search(random_prompt(random, prior=True), 5, trie=trie) for trie in (None, new, old, new)
    ]
    for search, found in zip(searches, runner.run(searches), strict=True):
        assert isinstance(found, Hypotheses)
        trie = search.trie or old
        check_sound(found, trie, None)
        check_equal(found, stepwise_beam(decoder.oracle, trie, search.prompt, 5))


def test_equal_scores_come_in_sid_order(make_decoder, make_trie):
    trie = make_trie(0, 300)
    runner = make_decoder(scale=0.0).runner(trie)
    (found,) = runner.search_batch([Prompt(np.arange(5, dtype=np.int32))], 50)
    # Uniform at every level: prefixes, too, are kept in SID order.
    assert np.array_equal(found.leaves, np.arange(50))
    mask = np.arange(trie.n_leaves) % 7 == 3
    (found,) = runner.search_batch([Prompt(np.arange(5, dtype=np.int32))], 20, trie.filter(mask))
    assert np.array_equal(found.leaves, np.flatnonzero(mask)[:20])


def test_few_allowed_sids_give_a_short_flagged_list(decoder, make_trie):
    trie = make_trie(1, 200)
    prompt = Prompt(np.array([3, 4], dtype=np.int32))
    for count in (0, 1, 5):
        mask = np.zeros(trie.n_leaves, dtype=np.bool_)
        mask[:count] = True
        (found,) = decoder.runner(trie).search_batch([prompt], 10, trie.filter(mask))
        assert sorted(found.leaves.tolist()) == list(range(count))
        assert not found.complete
        assert found.codes.shape == found.level_scores.shape == (count, 3)


def test_branching_counts_the_allowed_children(decoder, make_trie):
    trie = make_trie(2, 100)
    mask = np.random.default_rng(0).random(trie.n_leaves) < 0.5
    prompt = Prompt(np.array([3, 4], dtype=np.int32))
    for allowed, filter in ((np.ones_like(mask), None), (mask, trie.filter(mask))):
        (found,) = decoder.runner(trie).search_batch([prompt], 7, filter)
        sids = trie.codes_of_leaves(np.flatnonzero(allowed))
        for codes, branching in zip(found.codes, found.branching, strict=True):
            for level in range(3):
                same = sids[(sids[:, :level] == codes[:level]).all(1)]
                assert branching[level] == len(np.unique(same[:, level]))


def test_a_million_decoded_sids_are_all_legal(decoder, make_trie):
    trie = make_trie(3, 1500)
    random = np.random.default_rng(0)
    runner, decoded = decoder.runner(trie), 0
    while decoded < 1_000_000:
        prompts = [random_prompt(random) for _ in range(64)]
        for found in runner.search_batch(prompts, 1000, budget_rows=16_000):
            assert len(found) == 1000
            keys = trie.layout.pack(found.codes)
            assert np.array_equal(trie.keys[found.leaves], keys)
            decoded += len(found)


def test_batches_do_not_change_results(decoder, make_trie):
    trie, random = make_trie(4, 200), np.random.default_rng(1)
    prompts = [random_prompt(random, prior=row % 2 == 0) for row in range(9)]
    runner = decoder.runner(trie)
    together = runner.search_batch(prompts, 6)
    by_two = runner.search_batch(prompts, 6, budget_rows=12)
    for one, two in zip(together, by_two, strict=True):
        np.testing.assert_allclose(one.scores, two.scores, atol=TOLERANCE)


def test_late_and_cancelled_searches_end_alone(decoder, make_trie):
    trie = make_trie(5, 200)
    prompt = Prompt(np.array([3, 4], dtype=np.int32))
    asked = iter([False, False, True, True, True, True])
    runner = decoder.runner(trie)
    results = runner.run(
        [
            Search(prompt, 5, deadline=time.monotonic() - 0.5),
            Search(prompt, 5, cancelled=lambda: next(asked)),  # Gone after the first level.
            Search(prompt, 5, deadline=time.monotonic() + 60),
            Search(prompt, 5, cancelled=lambda: True),
        ]
    )
    (alone,) = runner.search_batch([prompt], 5)
    assert isinstance(results[0], DeadlineExceeded)
    assert results[1] is None
    assert isinstance(results[2], Hypotheses)
    assert np.array_equal(results[2].leaves, alone.leaves)
    assert results[3] is None


def test_misfits_are_refused_with_a_reason(decoder, make_trie):
    trie = make_trie(6, 100)
    runner = decoder.runner(trie)
    good = Prompt(np.array([1, 2], dtype=np.int32))
    other = make_trie(7, 50)

    def refuse(word: str, prompt: Prompt = good, width: int = 3, filter=None) -> None:
        with pytest.raises(ConfigError, match=word):
            runner.search_batch([prompt], width, filter)

    refuse("beam_width", width=0)
    refuse("filter covers", filter=other.filter(np.ones(other.n_leaves, dtype=np.bool_)))
    refuse("1 to 61", Prompt(np.zeros(0, dtype=np.int32)))
    refuse("1 to 61", Prompt(np.zeros(62, dtype=np.int32)))
    refuse("vocabulary has 88", Prompt(np.array([88], dtype=np.int32)))
    refuse("level priors have shapes", Prompt(good.token_ids, (np.zeros(16, np.float32),)))
    broken = np.full(16, np.nan, dtype=np.float32)
    refuse("finite", Prompt(good.token_ids, (broken, broken, broken)))
    layout = SidLayout((16, 16))
    small = Trie.build(layout, np.arange(4, dtype=np.uint64))
    with pytest.raises(ArtifactError, match="different codecs"):
        Runner(decoder.weights, small)
