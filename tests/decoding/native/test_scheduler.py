"""The queue under a clock that the test turns; runners are only told apart."""

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding.engine import Prompt
from decoding.errors import EngineOverloaded
from decoding.native.runner import Runner, Search
from decoding.native.scheduler import TOKEN_ROWS, Group, Job, Scheduler

RUNNER, OTHER = cast(Runner, "runner"), cast(Runner, "other")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def group(*widths: int, runner: Runner = RUNNER, tokens: int = 2) -> Group:
    prompt = Prompt(np.zeros(tokens, dtype=np.int32))
    return Group.of(runner, [Job(Search(prompt, width), lambda _: None) for width in widths])


def scheduler(budget: int = 100, queue: int = 10_000, workers: int = 1) -> tuple[Scheduler, Clock]:
    clock = Clock()
    return Scheduler(budget_rows=budget, queue_rows=queue, workers=workers, clock=clock), clock


def run_all(queue: Scheduler, clock: Clock, seconds: float = 0.01) -> list[list[int]]:
    """Waves until nothing waits, as widths."""
    waves: list[list[int]] = []
    while (wave := queue.next_wave()) is not None:
        waves.append([job.search.beam_width for job in wave.jobs])
        clock.now += seconds
        queue.wave_done(wave)
    return waves


def test_a_wide_search_at_the_head_goes_next_and_small_ones_fill_its_wave():
    queue, clock = scheduler()
    queue.admit(group(80))
    for _ in range(10):
        queue.admit(group(99))
        queue.admit(group(8))
    waves = run_all(queue, clock)
    assert waves == [[80, 8, 8], *[[99]] * 3, [8] * 8, *[[99]] * 7]


def test_a_stream_of_small_searches_starves_no_wide_one():
    queue, _ = scheduler()
    wide = group(90)
    queue.admit(group(50))
    queue.admit(wide)
    for turn in range(3):
        for _ in range(20):
            queue.admit(group(5))
        wave = queue.next_wave()
        assert wave is not None
        if wide in wave.groups:
            assert turn == 1
            break
        queue.wave_done(wave)
    else:
        pytest.fail("the wide search never ran")


def test_the_searches_of_a_request_enter_one_wave_together():
    queue, clock = scheduler()
    queue.admit(group(60))
    queue.admit(group(15, 15, 15))
    queue.admit(group(30))
    assert run_all(queue, clock) == [[60, 30], [15, 15, 15]]


def test_a_request_larger_than_a_wave_takes_several_and_others_use_its_room():
    queue, clock = scheduler()
    queue.admit(group(*[30] * 7, 300))
    queue.admit(group(5))
    assert run_all(queue, clock) == [[30] * 3 + [5], [30] * 3, [30], [300]]
    assert [queue.queued_rows, queue.queued_prompts, len(queue)] == [0, 0, 0]


def test_a_wave_is_of_one_runner_and_both_get_their_turn():
    queue, _ = scheduler()
    for runner in (RUNNER, OTHER, RUNNER, OTHER):
        queue.admit(group(10, runner=runner))
    seen: list[Any] = []
    while (wave := queue.next_wave()) is not None:
        assert {one.runner for one in wave.groups} == {wave.runner}
        seen.append(wave.runner)
        queue.wave_done(wave)
    assert seen == [RUNNER, OTHER]


def test_long_prompts_take_room_as_beams_do():
    queue, clock = scheduler()
    for _ in range(4):
        queue.admit(group(10, tokens=80))
    assert run_all(queue, clock) == [[10, 10], [10, 10]]


def test_what_is_withdrawn_frees_its_rows_at_once():
    queue, clock = scheduler(queue=100)
    gone, kept = group(40, 40), group(20)
    queue.admit(gone)
    queue.admit(kept)
    with pytest.raises(EngineOverloaded):
        queue.admit(group(20))
    assert queue.withdraw(gone) == 2
    assert queue.withdraw(gone) == 0
    assert queue.queued_rows == 20
    queue.admit(group(60))
    assert run_all(queue, clock) == [[20, 60]]


def test_a_request_half_of_which_has_run_can_be_withdrawn():
    queue, _ = scheduler()
    large = group(*[60] * 3)
    queue.admit(large)
    wave = queue.next_wave()
    assert wave is not None
    assert [len(wave.jobs), queue.withdraw(large), queue.queued_rows] == [1, 2, 0]
    queue.wave_done(wave)
    assert queue.next_wave() is None


def test_a_deadline_that_cannot_be_met_is_refused_unless_nothing_is_before_it():
    queue, clock = scheduler()
    for _ in range(20):
        queue.cost.learn(100, 2, 0.1)
    # However dear: with an idle engine it is tried, or a wrong prediction would last for ever.
    queue.admit(group(100), deadline=clock.now + 0.01)
    wave = queue.next_wave()
    assert wave is not None
    assert wave.expected_s == pytest.approx(0.1, rel=0.05)
    queue.admit(group(100), deadline=clock.now + 0.25)
    with pytest.raises(EngineOverloaded) as refused:
        queue.admit(group(100), deadline=clock.now + 0.25)
    assert 0 < refused.value.retry_after_s < 0.1
    queue.admit(group(10), deadline=clock.now + 0.25)
    clock.now += 0.09
    assert queue.expected_wait() == pytest.approx(0.01 + 0.11, rel=0.1)


def test_a_wave_that_was_cut_short_does_not_make_waves_look_cheap():
    queue, clock = scheduler()
    for _ in range(20):
        queue.cost.learn(100, 2, 0.1)
    for whole, seconds, expected in ((False, 0.001, 0.1), (True, 0.01, 0.08), (False, 1.0, 0.1)):
        for _ in range(20):
            queue.admit(group(100))
            wave = queue.next_wave()
            assert wave is not None
            clock.now += seconds
            queue.wave_done(wave, whole=whole)
        cost = queue.cost.seconds(100, 2)
        assert cost <= expected * 1.05 if whole else cost >= expected * 0.95


def test_idle_workers_share_what_waits():
    queue, _ = scheduler(workers=2)
    for _ in range(4):
        queue.admit(group(10))
    waves = [queue.next_wave(), queue.next_wave()]
    assert [len(wave.jobs) for wave in waves if wave is not None] == [2, 2]


@given(
    st.lists(st.lists(st.integers(1, 150), min_size=1, max_size=4), max_size=40),
    st.integers(1, 3),
)
def test_everything_runs_once_in_time_and_within_the_budget(requests, workers):
    queue, _ = scheduler(workers=workers)
    groups = [group(*widths) for widths in requests]
    for one in groups:
        queue.admit(one)
    begun: list[Group] = []
    ran = 0
    while (wave := queue.next_wave()) is not None:
        size = sum(job.size for job in wave.jobs)
        assert size <= queue.budget_rows or len(wave.jobs) == 1 or workers > 1
        waiting = [one for one in groups if one not in begun]
        if waiting and waiting[0] not in wave.groups:
            # Only a request that is still being worked off goes before the oldest.
            assert wave.groups[0] in begun
        begun += [one for one in wave.groups if one not in begun]
        ran += len(wave.jobs)
        queue.wave_done(wave)
    assert ran == sum(map(len, requests))
    assert queue.queued_rows == queue.queued_prompts == 0
    assert queue.expected_wait() >= 0
    assert TOKEN_ROWS > 0
