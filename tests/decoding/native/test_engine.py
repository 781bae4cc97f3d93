import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from decoding.engine import Engine, Hypotheses, Prompt
from decoding.errors import DeadlineExceeded, EngineClosed, EngineOverloaded
from decoding.native.engine import NativeEngine
from decoding.native.runner import Runner
from decoding.reference import allowed_sids, stepwise_beam
from index.errors import ConfigError, OnesearchError

pytestmark = pytest.mark.anyio

PROMPT = Prompt(np.array([3, 4, 5], dtype=np.int32))


@asynccontextmanager
async def serving(runner: Runner, **settings: int) -> AsyncIterator[NativeEngine]:
    engine = await NativeEngine(runner, **settings).start()
    try:
        yield engine
    finally:
        await engine.close()


class Gate:
    """A real runner whose waves wait at a gate, so that tests decide what queues up."""

    def __init__(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.widths: list[list[int]] = []
        run = runner.run

        def gated(searches):
            self.widths.append([search.beam_width for search in searches])
            self.entered.set()
            assert self.open.wait(60)
            return run(searches)

        self.install: Callable[[], None] = lambda: monkeypatch.setattr(runner, "run", gated)


async def busy(engine: NativeEngine, gate: Gate, width: int = 3) -> asyncio.Task[list[Hypotheses]]:
    """Occupy the worker with one search that waits at the gate."""
    gate.install()
    task = asyncio.create_task(engine.search([PROMPT], width))
    assert await asyncio.to_thread(gate.entered.wait, 10)
    return task


@pytest.mark.parametrize("name", ["budget_rows", "queue_rows", "workers", "threads"])
@pytest.mark.parametrize("size", [0, -1])
async def test_an_engine_of_no_size_is_refused(decoder, make_trie, name: str, size: int):
    with pytest.raises(ConfigError, match=f"{name} is {size}"):
        NativeEngine(decoder.runner(make_trie(0, 30)), **{name: size})


async def test_concurrent_searches_get_their_own_results(decoder, make_trie):
    trie, random = make_trie(0, 300), np.random.default_rng(0)
    runner = decoder.runner(trie)
    filter = trie.filter(random.random(trie.n_leaves) < 0.2)
    asked = [
        (
            [Prompt(random.integers(0, 40, 4).astype(np.int32)) for _ in range(1 + n % 3)],
            int(random.integers(1, 30)),
            filter if n % 2 else None,
        )
        for n in range(24)
    ]
    async with serving(runner, budget_rows=64) as engine:
        contract: Engine = engine
        found = await asyncio.gather(*(contract.search(*one) for one in asked))
        stats = engine.stats()
    for (prompts, width, kept), results in zip(asked, found, strict=True):
        assert len(results) == len(prompts)
        for prompt, result in zip(prompts, results, strict=True):
            (alone,) = runner.search_batch([prompt], width, kept)
            np.testing.assert_allclose(result.scores, alone.scores, atol=1e-4)
    assert stats.prompts == sum(len(prompts) for prompts, _, _ in asked)
    assert stats.queued_prompts == stats.queued_rows == stats.running_prompts == 0


async def test_waves_keep_to_the_budget_and_their_room_is_filled(decoder, make_trie, monkeypatch):
    runner = decoder.runner(make_trie(0, 300))
    gate = Gate(runner, monkeypatch)
    async with serving(runner, budget_rows=16) as engine:
        first = await busy(engine, gate)
        rest = [asyncio.create_task(engine.search([PROMPT], width)) for width in (4, 12, 30, 6, 1)]
        await asyncio.sleep(0)
        assert engine.stats().queued_rows == 53
        gate.open.set()
        results = await asyncio.gather(first, *rest)
        assert engine.stats().waves == 4
    # A prompt of three tokens counts as a row and a half beside its beams.
    assert gate.widths == [[3], [4, 6, 1], [12], [30]]
    assert [len(found[0]) for found in results] == [3, 4, 12, 30, 6, 1]


@pytest.mark.parametrize("workers", [1, 2])
async def test_mixed_widths_filters_tries_and_lengths_in_one_wave_are_each_exact(
    decoder, make_trie, monkeypatch, workers
):
    own, other, random = make_trie(0, 700), make_trie(1, 900), np.random.default_rng(0)
    runner = decoder.runner(own)
    asked = [
        (
            Prompt(random.integers(0, 40, 2 + n % 5).astype(np.int32)),
            width,
            trie.filter(random.random(trie.n_leaves) < 0.4) if n % 3 else None,
            trie,
        )
        for n, (width, trie) in enumerate(
            zip((10, 512, 50, 80, 80, 50, 512, 10), (own, other) * 4, strict=True)
        )
    ]
    gate = Gate(runner, monkeypatch)
    async with serving(runner, budget_rows=2048, workers=workers) as engine:
        gate.install()
        tasks = [
            asyncio.create_task(engine.search([prompt], width, kept, trie=trie))
            for prompt, width, kept, trie in asked
        ]
        await asyncio.sleep(0)
        gate.open.set()
        found = await asyncio.gather(*tasks)
    assert max(len(widths) for widths in gate.widths) >= 3
    for (prompt, width, kept, trie), [result] in zip(asked, found, strict=True):
        expected = stepwise_beam(decoder.oracle, trie, prompt, width, kept)
        assert len(result) == len(expected)
        np.testing.assert_allclose(result.scores, [score for _, score in expected], atol=1e-3)
        given = {tuple(codes) for codes in result.codes.tolist()}
        cut = expected[-1][1] + 1e-3
        assert {sid for sid, score in expected if score > cut} <= given
        assert given <= set(allowed_sids(trie, kept))


async def test_a_request_larger_than_the_budget_runs_and_the_small_are_not_lost(
    decoder, make_trie, monkeypatch
):
    runner = decoder.runner(make_trie(0, 300))
    gate = Gate(runner, monkeypatch)
    async with serving(runner, budget_rows=16) as engine:
        first = await busy(engine, gate)
        large = asyncio.create_task(engine.search([PROMPT] * 5, 10))
        small = [asyncio.create_task(engine.search([PROMPT], 2)) for _ in range(3)]
        await asyncio.sleep(0)
        gate.open.set()
        assert len(await large) == 5
        assert [len(await one) for one in (first, *small)] == [1] * 4
    assert gate.widths == [[3], [10, 2], [10, 2], [10, 2], [10], [10]]


async def test_a_deadline_that_passes_in_the_queue_is_told_at_once_and_frees_its_rows(
    decoder, make_trie, monkeypatch
):
    runner = decoder.runner(make_trie(0, 300))
    gate = Gate(runner, monkeypatch)
    async with serving(runner) as engine:
        first = await busy(engine, gate)
        with pytest.raises(DeadlineExceeded):
            await engine.search([PROMPT, PROMPT], 3, None, time.monotonic() + 0.02)
        # The wave before it is still running.
        assert not first.done()
        assert engine.stats().queued_rows == 0
        gate.open.set()
        assert len(await first) == 1
        assert engine.stats().expired == 2
    assert gate.widths == [[3]]


async def test_a_cancelled_request_frees_its_rows_at_once_or_with_its_wave(
    decoder, make_trie, monkeypatch
):
    runner = decoder.runner(make_trie(0, 300))
    gate = Gate(runner, monkeypatch)
    async with serving(runner, budget_rows=6, queue_rows=16) as engine:
        first = await busy(engine, gate)
        gone = asyncio.create_task(engine.search([PROMPT] * 3, 4))
        await asyncio.sleep(0)
        with pytest.raises(EngineOverloaded):
            await engine.search([PROMPT] * 2, 4)
        for task in (gone, first):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert engine.stats().queued_rows == 0
        kept = asyncio.create_task(engine.search([PROMPT], 4))
        await asyncio.sleep(0)
        gate.open.set()
        assert len(await kept) == 1
        stats = engine.stats()
        assert [stats.cancelled, stats.running_prompts, stats.expired] == [4, 0, 0]
    assert gate.widths == [[3], [4]]


async def test_overload_is_refused_at_once(decoder, make_trie, monkeypatch):
    runner = decoder.runner(make_trie(0, 300))
    gate = Gate(runner, monkeypatch)
    async with serving(runner, budget_rows=10, queue_rows=25) as engine:
        first = await busy(engine, gate)
        waiting = [asyncio.create_task(engine.search([PROMPT], 10)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(EngineOverloaded) as refused:
            await engine.search([PROMPT], 10)
        assert refused.value.retry_after_s > 0
        # The queue has room for five more, but not in the time that is left.
        engine._scheduler.cost.learn(10, 3, 500.0)
        with pytest.raises(EngineOverloaded, match="left"):
            await engine.search([PROMPT], 5, None, time.monotonic() + 30)
        assert engine.stats().shed == 2
        gate.open.set()
        await asyncio.gather(first, *waiting)


async def test_two_workers_run_two_waves_at_a_time(decoder, make_trie, monkeypatch):
    runner = decoder.runner(make_trie(0, 300))
    expected = runner.search_batch([PROMPT], 8)[0]
    gate = Gate(runner, monkeypatch)
    async with serving(runner, budget_rows=64, workers=2) as engine:
        gate.install()
        tasks = [asyncio.create_task(engine.search([PROMPT], 8)) for _ in range(2)]
        await asyncio.to_thread(wait_for, lambda: len(gate.widths) == 2)
        rest = [asyncio.create_task(engine.search([PROMPT], 8)) for _ in range(20)]
        await asyncio.sleep(0)
        assert [engine.stats().running_prompts, engine.stats().queued_prompts] == [2, 20]
        gate.open.set()
        for [result] in await asyncio.gather(*tasks, *rest):
            np.testing.assert_allclose(result.scores, expected.scores, atol=1e-4)
    assert sum(len(widths) for widths in gate.widths) == 22


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


async def test_swap_under_load_fails_nothing_and_mixes_nothing(make_decoder, make_trie):
    runners = [make_decoder(seed).runner(make_trie(seed, 200)) for seed in range(2)]
    truth = [runner.search_batch([PROMPT], 8)[0] for runner in runners]
    assert not np.allclose(truth[0].scores, truth[1].scores, atol=1e-2)
    stop, seen = asyncio.Event(), [0, 0]

    async def client(engine: NativeEngine) -> None:
        while not stop.is_set():
            results = await engine.search([PROMPT] * 5, 8)
            which = [
                int(not np.allclose(result.scores, truth[0].scores, atol=1e-3))
                for result in results
            ]
            assert len(set(which)) == 1
            expected = truth[which[0]]
            for result in results:
                assert np.allclose(result.scores, expected.scores, atol=1e-3)
                assert set(result.leaves.tolist()) == set(expected.leaves.tolist())
            seen[which[0]] += 1

    async with serving(runners[0], budget_rows=16) as engine, asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(client(engine))
        for turn in range(10):
            await asyncio.sleep(0.02)
            await engine.swap(runners[(turn + 1) % 2])
        stop.set()
    assert min(seen) > 0
    assert engine.stats().swaps == 10
    assert engine.stats().failed == 0


async def test_a_search_runs_on_the_generation_it_names(make_decoder, make_trie):
    runners = [make_decoder(seed).runner(make_trie(seed, 200)) for seed in range(2)]
    truth = [runner.search_batch([PROMPT], 8)[0] for runner in runners]
    async with serving(runners[0]) as engine:
        await engine.swap(runners[1])
        named = (runners[0], None, runners[1], runners[0])
        found = await asyncio.gather(
            *(engine.search([PROMPT], 8, generation=runner) for runner in named)
        )
    for [result], place in zip(found, (0, 1, 1, 0), strict=True):
        np.testing.assert_allclose(result.scores, truth[place].scores, atol=1e-3)
        assert set(result.leaves.tolist()) == set(truth[place].leaves.tolist())


async def test_close_answers_everyone(decoder, make_trie, monkeypatch):
    runner = decoder.runner(make_trie(0, 300))
    gate = Gate(runner, monkeypatch)
    engine = await NativeEngine(runner).start()
    first = await busy(engine, gate)
    waiting = asyncio.create_task(engine.search([PROMPT], 3))
    await asyncio.sleep(0)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    gate.open.set()
    assert len(await first) == 1
    with pytest.raises(EngineClosed):
        await waiting
    await closing
    await engine.close()
    with pytest.raises(EngineClosed):
        await engine.search([PROMPT], 3)


async def test_a_failing_wave_is_answered_and_the_worker_lives(decoder, make_trie, monkeypatch):
    runner = decoder.runner(make_trie(0, 300))
    async with serving(runner) as engine:
        with monkeypatch.context() as patched:

            def fail(searches):
                raise RuntimeError("out of memory")

            patched.setattr(runner, "run", fail)
            with pytest.raises(OnesearchError, match="out of memory"):
                await engine.search([PROMPT, PROMPT], 3)
        assert len(await engine.search([PROMPT], 3)) == 1
        with pytest.raises(ConfigError):
            await engine.search([PROMPT], 0)
        assert await engine.search([], 3) == []
        assert engine.stats().failed == 2
