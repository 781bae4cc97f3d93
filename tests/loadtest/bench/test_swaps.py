"""What the benchmark of swaps calls a fault, which answers it counts to a swap, and its rows."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench import swaps
from loadtest.bench.swap_record import Record, Swap, slope_of, table_of
from loadtest.bench.swap_stock import Judge, Stock


def answer(model: str, index: str, hits: list[tuple[str, str, float]], **other: Any) -> Any:
    return {
        "model_version": model,
        "index_version": index,
        "query": "desk",
        "degraded": [],
        "hits": [{"item_id": item, "sid": sid, "score": score} for item, sid, score in hits],
    } | other


@pytest.fixture
def judge() -> Judge:
    sids = {"i1": {"a": "<a_1>", "b": "<a_2>"}, "i2": {"a": "<a_7>", "b": "<a_2>"}}
    judge = Judge(Stock(Path("registry"), "g1", "g2", None, sids))
    judge.learn(answer("m1", "i1", [("a", "<a_1>", 2.0), ("b", "<a_2>", 1.0)]))
    judge.learn(answer("m2", "i2", [("b", "<a_2>", 3.0), ("a", "<a_7>", 1.0)]))
    return judge


def test_answers_of_one_generation_are_without_fault(judge: Judge):
    assert judge.fault(answer("m1", "i1", [("a", "<a_1>", 2.0), ("b", "<a_2>", 1.0)])) is None
    near = [("a", "<a_1>", 1.9995), ("b", "<a_2>", 1.0)]
    assert judge.fault(answer("m1", "i1+3", near)) is None
    assert judge.fault(answer("m1", "i1", [("b", "<a_2>", 9.0)], degraded=["x"])) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (answer("m1", "i2", [("b", "<a_2>", 3.0)]), "no generation has"),
        (answer("m1", "i1", [("a", "<a_7>", 2.0), ("b", "<a_2>", 1.0)]), "not under <a_7>"),
        (answer("m1", "i1", [("c", "<a_1>", 2.0), ("b", "<a_2>", 1.0)]), "c is not under"),
        (answer("m1", "i1", [("b", "<a_2>", 3.0), ("a", "<a_1>", 1.0)]), "hit 1 is b"),
        (answer("m1", "i1", [("a", "<a_1>", 2.0)]), "1 hits, 2"),
        (answer("m1", "i1", [("b", "<a_7>", 3.0)], degraded=["x"]), "not under"),
    ],
)
def test_mixtures_are_faults(judge: Judge, wrong: Any, said: str):
    assert said in str(judge.fault(wrong))


def test_answers_count_to_a_swap_until_it_has_settled():
    record = Record([Swap("promotion", 10.0, 11.0, True, {}, 100.0)])
    record.latencies = [(9.9, 0.1), (10.0, 0.2), (11.9, 0.3), (12.1, 0.4)]
    assert record.during() == ([0.2, 0.3], [0.1, 0.4])


def test_growth_has_an_interval():
    slope, half = slope_of([1.0, 2.0, 3.0, 4.0])
    assert slope == pytest.approx(1)
    assert half == pytest.approx(0)
    assert slope_of([5.0, 5.0]) == (0.0, math.inf)


def test_every_pair_is_visited_alike_and_the_target_is_never_the_champion():
    champion, previous = "1", "3"
    visited, rolled_back = Counter[tuple[str, str]](), set[tuple[str, str]]()
    for rolls_back, target in swaps.turns(["1", "2", "3"], 25):
        assert target != champion
        assert target == previous or not rolls_back
        visited[champion, target] += 1
        if rolls_back:
            rolled_back.add((champion, target))
        champion, previous = target, champion
    assert len(visited) == 6
    assert max(visited.values()) - min(visited.values()) <= 2
    assert len(rolled_back) >= 3
    assert [rolls_back for rolls_back, _ in swaps.turns(["1", "2"], 25)].count(True) == 5


def test_rows_tell_what_was_not_whole():
    record = Record([Swap("promotion", 1.0, 2.0, True, {"open": 5.0}, 100.0) for _ in range(9)])
    record.latencies = [(1.5, 0.03), (5.0, 0.01)]
    record.outcomes.update({"200": 7, "503": 2, "degraded": 1})
    record.failed = [1.2, 9.0]
    record.faults.append("mixed")
    before = Record([Swap("promotion", 0.5, 0.6, False, {}, 90.0)])
    before.outcomes.update({"200": 3, "503": 1})
    before.faults.append("mixed")
    table = table_of("native", 10.0, record, before)
    rows = {row["what"]: row for row in table}
    assert rows["p99 of answers during swaps"]["ratio"] == {"outside of swaps": 0.3333}
    assert rows["answers refused or lost"]["ours"] == 2
    assert rows["answers refused or lost"]["during_swaps"] == 1
    assert rows["answers refused or lost"]["before"] == {
        "swaps": 1,
        "offered": 4,
        "refused or lost": 1,
    }
    assert rows["answers of mixed generations"]["ours"] == 1
    assert rows["answers of mixed generations"]["faults"] == ["mixed"]
    assert rows["answers of mixed generations"]["before"] == {"checked": 0, "mixed": 1}
    assert rows["disk to live"]["parts_ms"] == {"open": 5.0}
    assert rows["growth of memory"]["ours"] == 0
    assert rows["growth of memory"]["before"] == {"memory_mb": [90]}
