"""Waves of beams against a beam grown alone, and against the step-wise oracle."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.beam import Beam, check_filter, grow_all
from decoding.engine import Prompt
from decoding.expand import expand_reference
from decoding.reference import Oracle, SidScore, brute_force, stepwise_beam
from decoding.team import ALONE, Team, torch_team
from index.errors import ConfigError
from index.live.trie import AnyTrie, LiveTrie
from index.sid import SidLayout
from index.trie import Trie

LAYOUT = SidLayout((16, 70, 16))
Model = Callable[[tuple[int, ...]], np.ndarray]


def random_trie(random: np.random.Generator, sids: int) -> Trie:
    codes = np.stack([random.integers(0, size, sids) for size in LAYOUT.level_sizes], axis=1)
    return Trie.build(LAYOUT, LAYOUT.pack(codes))


def extended(trie: Trie, random: np.random.Generator, sids: int) -> LiveTrie:
    codes = np.stack([random.integers(0, size, sids) for size in LAYOUT.level_sizes], axis=1)
    near = trie.codes_of_leaves(random.integers(0, trie.n_leaves, sids))
    codes[::2, 0] = near[::2, 0]
    codes[::4, 1] = near[::4, 1]
    return LiveTrie.of(trie, LAYOUT.pack(codes))


def random_model(seed: int, grid: int | None = None) -> Model:
    """Logits of a prefix, the same whenever asked."""

    def logits(prefix: tuple[int, ...]) -> np.ndarray:
        random = np.random.default_rng([seed, len(prefix), *prefix])
        found = random.normal(0, 3, LAYOUT.level_sizes[len(prefix)])
        return (found if grid is None else np.round(found * grid) / grid).astype(np.float32)

    return logits


def prefixes_of(beam: Beam) -> list[tuple[int, ...]]:
    row = np.arange(len(beam))
    columns: list[list[int]] = []
    for step in reversed(beam.steps):
        columns.append(step.codes[row].tolist())
        row = step.parents[row]
    return list(zip(*reversed(columns), strict=True)) if columns else [()]


def decode(
    beams: list[Beam],
    models: list[Model],
    priors: list[np.ndarray] | None = None,
    team: Team = ALONE,
) -> None:
    for level, size in enumerate(LAYOUT.level_sizes):
        rows = [
            model(prefix)
            for beam, model in zip(beams, models, strict=True)
            for prefix in (prefixes_of(beam) if len(beam) else [])
        ]
        logits = np.stack(rows) if rows else np.zeros((0, size), dtype=np.float32)
        before = [len(beam) for beam in beams]
        growth = grow_all(beams, logits, None if priors is None else priors[level], team)
        starts = np.cumsum([0, *before])
        parents, codes = [], []
        for start, count, beam in zip(starts, before, beams, strict=False):
            if count:
                parents += (beam.steps[-1].parents + start).tolist()
                codes += beam.steps[-1].codes.tolist()
        assert growth.parents.tolist() == parents
        assert growth.codes.tolist() == codes


def oracle_of(model: Model) -> Oracle:
    """The oracle reads token ids: the codes, shifted per level."""
    offsets = (0, 100, 200)

    def hidden(token_ids: torch.Tensor) -> torch.Tensor:
        ids = token_ids[0].tolist()[1:]
        prefix = tuple(token - offset for token, offset in zip(ids, offsets, strict=False))
        state = np.zeros(70)
        state[: LAYOUT.level_sizes[len(prefix)]] = model(prefix)
        return torch.from_numpy(state)[None, None]

    outputs = [torch.eye(size, 70) for size in LAYOUT.level_sizes]
    return Oracle(hidden, outputs, offsets)


def close(beam: Beam, expected: list[SidScore]) -> bool:
    found = beam.hypotheses()
    return [tuple(codes) for codes in found.codes.tolist()] == [sid for sid, _ in expected] and (
        np.allclose(found.scores, [score for _, score in expected], atol=1e-4)
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    sids=st.integers(1, 3000),
    widths=st.lists(st.sampled_from([1, 2, 10, 50, 80, 512]), min_size=1, max_size=5),
    grid=st.sampled_from([None, 1]),
    with_priors=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_wave_is_each_of_its_beams_alone(seed, sids, widths, grid, with_priors):
    random = np.random.default_rng(seed)
    trie = random_trie(random, sids)
    priors = None
    if with_priors:
        priors = [
            random.normal(0, 3, (len(widths), size)).astype(np.float32)
            for size in LAYOUT.level_sizes
        ]

    def beam(width: int, number: int) -> Beam:
        own: AnyTrie = trie
        if number % 3 == 1:
            own = extended(trie, np.random.default_rng([seed, number]), 20)
        mask = np.random.default_rng([seed, number]).random(own.n_leaves) < 0.1
        return Beam(own, width, own.filter(mask) if number % 2 else None)

    models = [random_model(seed + number, grid) for number in range(len(widths))]
    wave = [beam(width, number) for number, width in enumerate(widths)]
    decode(wave, models, priors)
    for number, (width, together) in enumerate(zip(widths, wave, strict=True)):
        alone = beam(width, number)
        decode(
            [alone],
            [models[number]],
            None if priors is None else [prior[[number]] for prior in priors],
        )
        for one, two in zip(_fields(together), _fields(alone), strict=True):
            assert np.array_equal(one, two)


def _fields(beam: Beam) -> list[np.ndarray]:
    found = beam.hypotheses()
    return [found.leaves, found.codes, found.scores, found.level_scores, found.branching]


@given(
    seed=st.integers(0, 2**32 - 1),
    sids=st.integers(1, 800),
    width=st.sampled_from([1, 5, 50, 1000]),
    kept=st.sampled_from([None, 1.0, 0.05, 0.01, 0.0]),
    added=st.sampled_from([0, 30]),
)
@settings(max_examples=40, deadline=None)
def test_a_beam_is_the_stepwise_oracles(seed, sids, width, kept, added):
    random = np.random.default_rng(seed)
    base = random_trie(random, sids)
    trie = extended(base, random, added) if added else base
    filter = None if kept is None else trie.filter(random.random(trie.n_leaves) < kept)
    # The oracle knows plain tries: one with the same SIDs, and the filter's bits in their order.
    plain = Trie.build(LAYOUT, trie.keys)
    mask = None if filter is None else plain.filter(filter.bits[-1][trie.find(plain.keys)])
    model = random_model(seed)
    oracle, prompt = oracle_of(model), Prompt(np.zeros(1, dtype=np.int32))
    beam = Beam(trie, width, filter)
    decode([beam], [model])
    assert close(beam, stepwise_beam(oracle, plain, prompt, width, mask))
    if width >= trie.n_leaves:
        assert close(beam, brute_force(oracle, plain, prompt, mask))
    found = beam.hypotheses()
    assert trie.find(LAYOUT.pack(found.codes)).tolist() == found.leaves.tolist()
    assert np.allclose(found.level_scores.sum(1), found.scores, atol=1e-4)


def test_ties_stand_in_sid_order_with_added_nodes_among_them():
    base = Trie.build(LAYOUT, LAYOUT.pack(np.array([[1, 5, 3], [3, 5, 3], [3, 5, 9]])))
    more = np.array([[0, 9, 1], [1, 2, 2], [1, 5, 1], [2, 0, 0], [3, 5, 5], [15, 69, 15]])
    trie = LiveTrie.of(base, LAYOUT.pack(more))
    beam = Beam(trie, 20)
    decode([beam], [lambda prefix: np.zeros(LAYOUT.level_sizes[len(prefix)], dtype=np.float32)])
    found = beam.hypotheses()
    assert len(found) == 9
    assert found.codes.tolist() == sorted(found.codes.tolist())
    assert found.branching[:, 0].tolist() == [5] * 9


def test_dropped_beams_keep_their_place_in_the_logits():
    random = np.random.default_rng(3)
    trie = random_trie(random, 500)
    first, second, alone = Beam(trie, 7), Beam(trie, 9), Beam(trie, 9)
    start = random.normal(0, 1, (1, 16)).astype(np.float32)
    grow_all([first, second], np.concatenate([start, start]))
    alone.grow(start)
    logits = random.normal(0, 1, (16, 70)).astype(np.float32)
    first.drop()
    growth = grow_all([first, second], logits, starts=[0, 7])
    step = alone.grow(logits[7:])
    assert growth.parents.tolist() == (step.parents + 7).tolist()
    assert np.array_equal(second.nodes, alone.nodes)
    assert not len(first)
    assert not len(grow_all([first], logits).codes)


def test_log_probabilities_are_logits():
    random = np.random.default_rng(4)
    trie = random_trie(random, 500)
    logits = torch.from_numpy(random.normal(0, 1, (1, 16)).astype(np.float32))
    raw, normalised = Beam(trie, 5), Beam(trie, 5)
    raw.grow(logits.numpy())
    normalised.grow(torch.log_softmax(logits, -1).numpy())
    assert np.array_equal(raw.nodes, normalised.nodes)
    assert np.allclose(raw.scores, normalised.scores, atol=1e-6)


def test_a_beam_that_runs_out_is_incomplete():
    trie = random_trie(np.random.default_rng(5), 40)
    beam = Beam(trie, 4, trie.filter(np.zeros(trie.n_leaves, dtype=np.bool_)))
    decode([beam], [random_model(0)])
    assert not len(beam.hypotheses())
    assert not beam.hypotheses().complete


def test_growing_is_expanding():
    random = np.random.default_rng(6)
    trie = random_trie(random, 900)
    logits = random.normal(0, 1, (1, 16)).astype(np.float32)
    beam = Beam(trie, 6)
    step = beam.grow(logits)
    root = np.zeros(1, dtype=np.int64)
    expected = expand_reference(trie, 0, root, beam.scores[:1] * 0, logits, None, None, 6)
    assert step.codes.tolist() == expected.codes.tolist()
    assert step.branching.tolist() == expected.branching.tolist()


def test_a_filter_of_another_trie_is_refused():
    random = np.random.default_rng(7)
    trie, other = random_trie(random, 30), random_trie(random, 50)
    check_filter(trie, None)
    check_filter(trie, trie.filter(np.ones(trie.n_leaves, dtype=np.bool_)))
    with pytest.raises(ConfigError, match="the trie has"):
        check_filter(trie, other.filter(np.ones(other.n_leaves, dtype=np.bool_)))


@pytest.fixture(params=[2, 3])
def team(request) -> Team:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    found = torch_team()
    torch.set_num_threads(before)
    return found


@pytest.mark.parametrize("widths", [(600,), (3, 700), (90, 200, 1, 90, 200, 90)])
@pytest.mark.parametrize("grid", [None, 1])
@pytest.mark.parametrize("kept", [None, 0.2])
def test_threads_change_nothing(team: Team, widths: tuple[int, ...], grid: int | None, kept):
    """Beams are dealt out, or their rows where beams are few."""
    layout, random = SidLayout((64, 300, 200)), np.random.default_rng(len(widths))
    codes = np.stack([random.integers(0, size, 50_000) for size in layout.level_sizes], axis=1)
    base = Trie.build(layout, layout.pack(codes))
    trie = LiveTrie.of(base, layout.pack(codes[:, [0, 2, 1]] % layout.level_sizes)[:500])
    filter = None if kept is None else trie.filter(random.random(trie.n_leaves) < kept)
    alone, together = ([Beam(trie, width, filter) for width in widths] for _ in range(2))
    for size in layout.level_sizes:
        logits = random.normal(0, 3, (sum(map(len, alone)), size)).astype(np.float32)
        if grid is not None:
            logits = np.round(logits * grid) / grid
        priors = random.integers(-2, 3, (len(widths), size)).astype(np.float32)
        expected = grow_all(alone, logits, priors)
        found = grow_all(together, logits, priors, team)
        for one, two in zip(expected, found, strict=True):
            assert np.array_equal(one, two)
    for one, two in zip(alone, together, strict=True):
        for field in ("leaves", "scores", "level_scores", "branching"):
            assert np.array_equal(
                getattr(one.hypotheses(), field), getattr(two.hypotheses(), field)
            )
