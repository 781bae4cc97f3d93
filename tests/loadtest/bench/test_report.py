import json
import time

import pytest

from loadtest.bench.report import EQUAL, OURS, peer_names, race, row, setting_text, tables, verdict


def test_ratio_above_one_means_ours_is_better():
    faster = row("search", {"beam": 8}, 2.0, {"slow": 5.0, "quick": 1.0}, "ms")
    assert faster["ratio"] == {"slow": 2.5, "quick": 0.5}
    more = row("load", {}, 200.0, {"other": 50.0}, "requests/s", higher_is_better=True)
    assert more["ratio"] == {"other": 4.0}


def test_samples_become_median_and_quartiles():
    found = row("search", {}, [4.0, 1.0, 2.0, 3.0, 9.0], {"one": [8.0, 7.0]}, "ms", levels=5)
    assert found["ours"] == 3.0
    assert found["peers"] == {"one": 7.5}
    assert found["quartiles"] == {OURS: [2.0, 4.0]}  # Two samples have none worth telling.
    assert found["levels"] == 5


def test_a_missing_peer_has_its_reason_and_no_ratio():
    found = row("search", {}, 1.0, {"absent": "not installed"}, "ms")
    assert found["peers"] == {"absent": "not installed"}
    assert found["ratio"] == {}


def test_zero_is_no_division_by_zero():
    assert row("shed", {}, 0.0, {"a": 3.0, "b": 0.0}, "requests")["ratio"] == {
        "a": float("inf"),
        "b": 1.0,
    }


def test_a_row_is_json():
    found = row("search", {"sids": 10}, [1.0, 2.0, 3.0], {"a": [2.0]}, "ms", answers={"a": EQUAL})
    assert json.loads(json.dumps(found)) == found


def test_verdict():
    assert verdict([1, 2, 3], [3, 2, 1]) == EQUAL
    assert verdict([1, 2, 3], [1, 2]) == "2 of 3 right"
    assert verdict([1, 2, 3], [1, 7, 8]) == "1 of 3 right, 2 wrong"
    assert verdict([], []) == EQUAL


def test_rounds_are_interleaved_and_take_turns_at_the_start():
    calls: list[str] = []

    def contender(name: str):
        def run() -> str:
            calls.append(name)
            time.sleep(0.001)
            return name

        return run

    result = race({"a": contender("a"), "b": contender("b")}, rounds=3, slice_s=0, warm_up=1)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert result.answers == {"a": "a", "b": "b"}
    assert all(len(samples) == 3 and min(samples) >= 0.001 for samples in result.seconds.values())
    assert result.scaled("a", 1e3) == pytest.approx([s * 1e3 for s in result.seconds["a"]])


def test_a_quick_contender_is_called_often_and_a_slow_one_ends_the_race():
    slow = [0]

    def dawdle() -> None:
        slow[0] += 1
        time.sleep(0.02)

    result = race({"ours": lambda: None, "slow": dawdle}, rounds=50, budget_s=0.05, slice_s=0.002)
    assert 3 <= len(result.seconds["slow"]) < 10
    assert len(result.seconds["ours"]) > 30
    assert result.peers(1.0).keys() == {"slow"}


def test_tables_and_names_keep_their_order():
    found = [
        row("b", {"n": 1}, 1.0, {"x": 1.0}, "ms"),
        row("a", {"n": 1}, 1.0, {"y": 1.0}, "ms"),
        row("b", {"n": 2000}, 1.0, {"z": 1.0, "x": 1.0}, "ms"),
    ]
    assert list(tables(found)) == ["b", "a"]
    assert peer_names(tables(found)["b"]) == ["x", "z"]
    assert setting_text(found[2]["setting"]) == "n 2,000"
