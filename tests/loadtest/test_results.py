"""Figures of made-up records: quantiles, shares, the slope of memory, two runs compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from index.errors import DataError
from loadtest.compare import compare
from loadtest.report import as_html, as_markdown, comparison, write_report
from loadtest.results import Run, memory_slope, summary
from loadtest.slo import DEFAULT_FILE, check, read_objectives

Write = Callable[..., Path]
MACHINE: dict[str, Any] = {
    "cpu": "<cpu>",
    "cores": 2,
    "memory_gb": 1.0,
    "versions": {},
    "commit": "x",
    "busy": True,
    "load_before": {"busy_share": 0.5},
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(name, latencies=…, outcomes=…)` → the folder of a run of one phase, ten a second."""

    def make(name: str, latency_s: float = 0.01, n: int = 600, bad: str = "") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        random = np.random.default_rng(len(name))
        lines: list[Any] = [
            ["50%", "search", number / 10, value, "whole", 0.001]
            for number, value in enumerate((latency_s * random.uniform(0.5, 1.5, n)).tolist())
        ]
        if bad:
            lines.append(["50%", "search", 1.0, None, bad, 0.0])
        lines.append(["swaps", "swap", 3.0, 0.2, "whole", 0.0])
        lines.append({"swap": "/x", "began": 3.0, "ended": 3.2, "is": "whole"})
        steps = [{"rate": 30.0, "share": 1.0, "held": True}]
        lines.append({"knee": 30.0, "steps": steps})
        lines.append({"phase": "50%", "rate": 10.0, "began": 0.0, "ended": n / 10})
        (folder / "records.jsonl").write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in lines))
        samples = [
            {"at": float(at), "server": at * 0.5, "load": at * 0.1}
            | {"memory_mb": 100.0 + at, "redis_mb": at}
            for at in range(n // 10)
        ]
        (folder / "samples.jsonl").write_bytes(
            b"".join(orjson.dumps(one) + b"\n" for one in samples)
        )
        return folder

    return make


def test_figures_of_a_run(write: Write):
    found = summary(Run.read(write("run", bad="status 500")))
    [phase] = found["phases"]
    search = phase["kinds"]["search"]
    assert search["requests"] == 601
    assert search["p50_ms"] == pytest.approx(10, rel=0.05)
    assert search["error_share"] == pytest.approx(1 / 601)
    assert found["unexplained"] == {"status 500": 1}
    assert phase["server_cores"] == pytest.approx(0.5)
    assert phase["load_cores"] == pytest.approx(0.1)
    assert found["knee_per_s"] == 30
    assert found["swaps"]["max_ms"] == 200
    assert found["memory"]["mb_per_hour"] == pytest.approx(0, abs=1e-6)
    # What Redis is given to keep is counted apart.
    assert found["redis_memory"]["mb_per_hour"] == pytest.approx(3600)


def test_the_report_says_the_same_in_all_of_its_forms(write: Write, tmp_path: Path):
    run = Run.read(write("run", bad="lost"))
    figures = summary(run)
    checks = check(read_objectives(DEFAULT_FILE), figures)
    files = write_report(run, figures, checks, MACHINE, "onesearch loadtest <x>", tmp_path)
    names = {file.name for file in files}
    assert {"report.json", "report.md", "report.html", "latency.svg", "memory.svg"} <= names
    markdown = (tmp_path / "report.md").read_text()
    page = (tmp_path / "report.html").read_text()
    for text in ("unexplained errors", "BROKEN", "Knee: 30 searches a second", "50%"):
        assert text in markdown
        assert text in page
    assert "<x>" not in page
    assert "50% busy" in markdown
    assert orjson.loads((tmp_path / "report.json").read_bytes())["unexplained_errors"] == 1


def test_runs_that_differ_are_told_from_runs_that_do_not(write: Write):
    base, same, slow = (Run.read(write(*one)) for one in (("a",), ("bb",), ("ccc", 0.02)))
    verdicts = [one.verdict() for one in compare(base, slow) if one.kind == "search"]
    assert verdicts == ["slower"] * 3
    assert {one.verdict() for one in compare(base, same)} == {"no clear difference"}
    assert [one.verdict() for one in compare(slow, base)][:3] == ["faster"] * 3
    sections = comparison(compare(base, slow), 1.1)
    assert "slower" in as_markdown("x", sections)
    assert "slower" in as_html("x", sections)


def test_runs_of_a_few_seconds_are_not_judged(write: Write):
    base, slow = Run.read(write("a", n=20)), Run.read(write("bb", 0.1, n=20))
    assert {one.verdict() for one in compare(base, slow)} == {"no clear difference"}


@pytest.mark.parametrize("slope", [0.0, 30.0, -12.0])
def test_the_slope_of_memory_has_an_interval_that_holds_it(slope: float):
    random = np.random.default_rng(1)
    at = np.arange(0, 7200, 5.0)
    # Neighbouring samples resemble each other, as real ones do.
    noise = np.convolve(random.normal(0, 2, len(at) + 20), np.ones(21) / 21, mode="valid")
    found = memory_slope(at, 500 + slope * at / 3600 + noise)
    low, high = found["ci95"]
    assert low <= slope <= high
    assert high - low < 5


def test_what_fills_at_first_is_no_slope():
    at = np.arange(0, 7200, 5.0)
    found = memory_slope(at, 500 + 100 * np.minimum(at / 1200, 1) + 0.01 * np.sin(at))
    assert found["mb_per_hour"] == pytest.approx(0, abs=0.1)
    assert memory_slope([], [])["mb_per_hour"] is None
    assert memory_slope([1.0], [2.0])["ci95"] is None


@pytest.mark.parametrize("text", [None, "{", "[1, 2]\n", "{}\n"])
def test_what_is_no_run_is_told(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "records.jsonl").write_text(text)
    with pytest.raises(DataError, match=str(tmp_path)):
        Run.read(tmp_path)
