import asyncio
import time

import numpy as np
import pytest

from decoding.engine import Engine, Prompt
from decoding.errors import DeadlineExceeded, EngineOverloaded
from decoding.native.runner import Search
from decoding.reference import brute_force, stepwise_beam
from index.errors import ConfigError
from index.live.trie import LiveTrie

pytest.importorskip("vllm", reason="vLLM lives in an environment of its own: make test-vllm")

from decoding.vllm.engine import VllmEngine

pytestmark = pytest.mark.anyio

LEVELS, SIZE = 3, 16


def drawn_prompts(seed: int, count: int, *, prior: bool = False) -> list[Prompt]:
    random = np.random.default_rng(seed)
    return [
        Prompt(
            random.integers(2, 40, int(length)).astype(np.int32),
            tuple(random.normal(0, 2, (LEVELS, SIZE)).astype(np.float32)) if prior else None,
        )
        for length in random.integers(3, 90, count)
    ]


def assert_same(found, expected):
    assert found.complete == expected.complete
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.leaves, expected.leaves)
    np.testing.assert_array_equal(found.branching, expected.branching)
    np.testing.assert_allclose(found.level_scores, expected.level_scores, atol=1e-4)


def native(tiny_model, prompts, width, kept=None, trie=None):
    """What the native engine finds."""
    return tiny_model.runner.run([Search(prompt, width, kept, trie=trie) for prompt in prompts])


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("width", [1, 8, 32, 128])
async def test_the_same_as_the_native_engine(
    vllm_engine: VllmEngine, tiny_model, tiny_trie, width, live, filtered, prior
):
    random, trie = np.random.default_rng(width), tiny_trie
    if live:
        added = random.integers(0, SIZE, (60, LEVELS))
        trie = LiveTrie.of(tiny_trie, tiny_trie.layout.pack(added))
    kept = trie.filter(random.random(trie.n_leaves) < 0.15) if filtered else None
    for count in (1, 8):
        prompts = drawn_prompts(width + count, count, prior=prior)
        engine: Engine = vllm_engine
        found = await engine.search(prompts, width, kept, trie=trie)
        for one, expected in zip(
            found, native(tiny_model, prompts, width, kept, trie), strict=True
        ):
            assert_same(one, expected)


async def test_brute_force_finds_no_better(vllm_engine: VllmEngine, tiny_model, tiny_trie):
    random = np.random.default_rng(5)
    kept = tiny_trie.filter(random.random(tiny_trie.n_leaves) < 0.1)
    [prompt] = drawn_prompts(1, 1, prior=True)
    [found] = await vllm_engine.search([prompt], 128, kept)
    expected = brute_force(tiny_model.oracle, tiny_trie, prompt, kept)
    assert len(expected) == len(found) and not found.complete
    assert [tuple(codes) for codes in found.codes.tolist()] == [sid for sid, _ in expected]
    np.testing.assert_allclose(found.scores, [score for _, score in expected], atol=1e-4)


@pytest.mark.parametrize("width", [1, 8])
async def test_stepwise_beam_finds_the_same(vllm_engine, tiny_model, tiny_trie, width):
    [prompt] = drawn_prompts(2, 1)
    [found] = await vllm_engine.search([prompt], width)
    expected = stepwise_beam(tiny_model.oracle, tiny_trie, prompt, width)
    assert [tuple(codes) for codes in found.codes.tolist()] == [sid for sid, _ in expected]
    np.testing.assert_allclose(found.scores, [score for _, score in expected], atol=1e-4)


async def test_mixed_searches_at_once_are_each_exact(vllm_engine, tiny_model, tiny_trie):
    random = np.random.default_rng(3)
    kept = tiny_trie.filter(random.random(tiny_trie.n_leaves) < 0.3)
    asked = [
        (drawn_prompts(seed, 1 + seed % 3, prior=seed % 2 == 0), width, kept if seed % 3 else None)
        for seed, width in enumerate((1, 40, 8, 128, 3, 64, 17, 300))
    ]
    found = await asyncio.gather(*(vllm_engine.search(*one) for one in asked))
    for (prompts, width, chosen), results in zip(asked, found, strict=True):
        for one, expected in zip(results, native(tiny_model, prompts, width, chosen), strict=True):
            assert_same(one, expected)


async def test_a_filter_that_leaves_nothing_finds_nothing(vllm_engine, tiny_trie):
    nothing = tiny_trie.filter(np.zeros(tiny_trie.n_leaves, dtype=np.bool_))
    [found] = await vllm_engine.search(drawn_prompts(0, 1), 8, nothing)
    assert len(found) == 0 and not found.complete


async def test_equal_scores_come_in_the_order_of_sids(
    vllm_engine: VllmEngine, tiny_model, tiny_trie, write_tiny, tmp_path
):
    """All codes are equally likely: the beam is the first SIDs, though what vLLM returns of equal
    ones is any."""
    from decoding.vllm.engine import VllmGeneration

    write_tiny(tmp_path / "flat", head=0.0)
    before = vllm_engine.live
    await vllm_engine.swap(VllmGeneration(tmp_path / "flat", tiny_trie))
    try:
        for width in (1, 5, 40, 128):
            [found] = await vllm_engine.search(drawn_prompts(width, 1), width)
            first = [sid[:1] for sid in tiny_trie.layout.unpack(tiny_trie.keys).tolist()]
            assert first[0] == found.codes[0, :1].tolist()
            expected = first_beam(tiny_trie, width)
            assert found.codes.tolist() == expected
    finally:
        await vllm_engine.swap(before)
    prompts = drawn_prompts(9, 1)
    [found] = await vllm_engine.search(prompts, 8)
    assert_same(found, native(tiny_model, prompts, 8)[0])


def first_beam(trie, width: int) -> list[list[int]]:
    """The beam in SID order."""
    sids = trie.layout.unpack(trie.keys).tolist()
    beam: list[list[int]] = [[]]
    for level in range(LEVELS):
        longer = sorted({tuple(sid[: level + 1]) for sid in sids if sid[:level] in beam})
        beam = [list(prefix) for prefix in longer[:width]]
    return beam


async def test_many_searches_cancelled_late_and_whole_leave_nothing_behind(
    vllm_engine: VllmEngine, tiny_model
):
    before = vllm_engine.stats()
    prompts = drawn_prompts(7, 64)
    tasks = [
        asyncio.create_task(
            vllm_engine.search(
                [prompt], 64, deadline=time.monotonic() + 0.02 * number if number % 3 == 0 else None
            )
        )
        for number, prompt in enumerate(prompts)
    ]
    await asyncio.sleep(0.05)
    for task in tasks[1::3]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, list):
            assert_same(outcome[0], native(tiny_model, [prompts[number]], 64)[0])
        elif number % 3 == 0:
            assert isinstance(outcome, DeadlineExceeded | EngineOverloaded)
        else:
            assert number % 3 == 1 and isinstance(outcome, asyncio.CancelledError)
    assert all(isinstance(outcome, list) for outcome in outcomes[2::3])
    await until_idle(vllm_engine)
    stats = vllm_engine.stats()
    assert stats.queued_prompts == stats.queued_rows == stats.running_prompts == 0
    ended = [
        getattr(stats, name) - getattr(before, name)
        for name in ("prompts", "expired", "cancelled", "shed")
    ]
    assert sum(ended) == 64 and stats.failed == before.failed
    assert stats.cancelled > before.cancelled


async def until_idle(engine: VllmEngine) -> None:
    """Until vLLM itself has no request left: it takes aborts when a step ends."""

    async def wait() -> None:
        # "wait" returns when nothing runs or waits in the core.
        async with engine.fence():
            await engine.llm.pause_generation(mode="wait", clear_cache=False)
            await engine.llm.resume_generation()

    async with asyncio.timeout(60):
        await engine.run(wait())
    assert engine.unanswered == engine.llm.get_num_unfinished_requests() == 0


async def test_a_deadline_that_has_passed_is_told_at_once(vllm_engine):
    with pytest.raises(DeadlineExceeded):
        await vllm_engine.search(drawn_prompts(0, 2), 8, deadline=time.monotonic() - 1)
    await until_idle(vllm_engine)


async def test_what_does_not_fit_is_refused(vllm_engine, tiny_trie):
    [prompt] = drawn_prompts(0, 1)
    with pytest.raises(ConfigError, match="beam_width is 0"):
        await vllm_engine.search([prompt], 0)
    with pytest.raises(ConfigError, match="vocabulary"):
        await vllm_engine.search([Prompt(np.array([400], dtype=np.int32))], 1)
    with pytest.raises(ConfigError, match="1 to 96 token ids"):
        await vllm_engine.search([Prompt(np.ones(97, dtype=np.int32))], 1)
    [found] = await vllm_engine.search([Prompt(np.ones(96, dtype=np.int32))], 4)
    assert len(found) == 4
