import numpy as np
import orjson
import pytest

from index.errors import DataError
from server.figures import GENERATIONS_KEPT, KEPT, Figures, Sample, Seen, outcome_of

A, B = ("m1", "s1"), ("m2", "s1")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_searches_are_kept_by_generation_time_and_arm(clock: Clock):
    figures = Figures(clock)
    figures.add(A, None, 0.1, "whole")
    clock.now = 110
    figures.add(A, "champion", 0.2, "degraded")
    figures.add(A, "challenger", 0.3, "failed")
    figures.add(B, "challenger", 0.4, "whole")
    clock.now = 120
    found = figures.since(A, 105)
    assert [list(found.seconds), list(found.degraded), list(found.failed)] == [
        [0.2, 0.3],
        [True, False],
        [False, True],
    ]
    assert [found.span_s, found.rate] == [15, 2 / 15]
    assert list(figures.since(A, 0, "champion").seconds) == [0.2]
    assert figures.count(A, 0) == 3
    assert figures.count(B, 0, "champion") == 0
    # Its time begins with the first of them.
    assert figures.last(A, 60).span_s == 20
    assert figures.last(A, 1).rate == 0
    assert figures.counts == {
        ("champion", "degraded"): 1,
        ("challenger", "failed"): 1,
        ("challenger", "whole"): 1,
    }


def test_what_is_kept_is_bounded(clock: Clock):
    figures = Figures(clock)
    for _ in range(KEPT + 10):
        clock.now += 1
        figures.add(A, None, 0.1, "whole")
    found = figures.since(A, 0)
    assert [len(found), found.span_s] == [KEPT, KEPT - 1]
    for number in range(GENERATIONS_KEPT):
        clock.now += 1
        figures.add((f"m{number}", "s2"), None, 0.1, "whole")
    assert figures.count(A, 0) == 0
    assert figures.count(("m0", "s2"), 0) == 1


def test_what_says_nothing_of_the_generation_is_whole():
    assert outcome_of([]) == outcome_of(["keywords_unavailable", "engine_replaced"]) == "whole"
    assert outcome_of(["engine_deadline"]) == "degraded"


def test_a_summary_keeps_what_is_compared():
    random = np.random.default_rng(0)
    seen = [
        Seen(0.0, float(random.gamma(2, 0.02)), outcome, None)
        for outcome in ["whole"] * 90 + ["degraded"] * 7 + ["failed"] * 3
    ]
    sample = Sample.of(seen, 12.5)
    again = Sample.of_summary(orjson.loads(orjson.dumps(sample.summary())))
    assert [len(again), again.rate] == [len(sample), sample.rate]
    assert [again.failed.sum(), again.degraded.sum()] == [3, 7]
    kept = np.sort(again.seconds[~again.failed])
    assert kept == pytest.approx(np.sort(sample.seconds[~sample.failed]), rel=0.005)
    nothing = Sample.of_summary(Sample.of([], 0.0).summary())
    assert [len(nothing), nothing.rate] == [0, 0.0]


@pytest.mark.parametrize("wrong", [{}, {"answered_ms": 3}, {"answered_ms": [["x", 1]]}])
def test_what_is_no_summary_is_refused(wrong: dict[str, object]):
    with pytest.raises(DataError, match="no summary"):
        Sample.of_summary(wrong)
