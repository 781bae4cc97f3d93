import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.bench.machine import describe_machine, one_line, others_share, others_times
from loadtest.bench.output import as_json, print_tables, write_report
from loadtest.bench.report import row


@pytest.fixture(scope="module")
def report():
    rows = [
        row("expand", {"sids": 10 * size}, size, {"peer": 2.0 * size, "gone": "not here"}, "ms")
        for size in (1, 10, 100)
    ]
    wrong = {"peer": "3 of 8 right"}
    rows.append(row("search, filtered", {"kept": "1 %"}, 3.0, {"peer": 1.5}, "ms", answers=wrong))
    return {"machine": describe_machine(), "rows": rows}


def test_machine_says_what_matters(report):
    machine = report["machine"]
    assert {"cpu", "cores", "memory_gb", "versions", "commit", "load_before", "busy"} <= set(
        machine
    )
    assert machine["versions"]["python"].startswith("3.")
    assert machine["cores"] >= 1
    assert machine["commit"] in one_line(machine)


def test_tables_tell_ratios_wrong_answers_and_missing_peers(report, capsys):
    print_tables(report, Console(width=120))
    shown = capsys.readouterr().out
    assert "200 (2×)" in shown
    assert "1.5 (0.5×) (1)" in shown
    assert "(1) peer: 3 of 8 right" in shown
    assert "gone: not here" in shown


def test_files(report, tmp_path: Path):
    written = write_report("tiny", report, tmp_path / "new")
    assert json.loads(written[0].read_text()) == json.loads(as_json(report))
    if find_spec("matplotlib") is not None:
        assert [file.name for file in written] == [
            "tiny.json",
            "tiny-expand.svg",
            "tiny-search-filtered.svg",
        ]
        before = [file.read_bytes() for file in written]
        again = write_report("tiny", report, tmp_path / "new")
        assert [file.read_bytes() for file in again] == before


def test_json_has_no_infinity():
    free = row("a", {}, 0.0, {"b": 1.0}, "ms")
    assert json.loads(as_json({"machine": {}, "rows": [free]}))["rows"][0]["ratio"] == {"b": None}


def test_others_are_not_us():
    before = others_times()
    assert os.getpid() not in before and os.getppid() in before
    assert others_share(dict.fromkeys(before, float("inf")), 1.0) <= 0
    assert others_share({}, 1.0) > 0


def test_a_plot_has_no_logarithm_of_nothing(tmp_path: Path):
    pytest.importorskip("matplotlib")
    machine, shown = describe_machine(), dict[float, str]()
    for value in (0.0, 30.0):
        rows = [row("a", {"b": "c"}, value, {"d": "none"}, "ms")]
        plot = write_report(str(value), {"machine": machine, "rows": rows}, tmp_path)[1]
        shown[value] = plot.read_text()
    assert {value: "10^" in text for value, text in shown.items()} == {0.0: False, 30.0: True}
