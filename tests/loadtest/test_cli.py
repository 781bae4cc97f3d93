"""`onesearch loadtest` as a user calls it, over real HTTP, small."""

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import orjson
import pytest

from loadtest.bench.gateway import GATEWAY, _server
from loadtest.results import Run

PATIENCE_S = 120


def onesearch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from server.cli.main import run; run()", "loadtest"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S
    )


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str, None, None]:
    with _server(GATEWAY, tmp_path_factory.mktemp("gateway")) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("log") / "queries.csv"
    file.write_text("query\n" + "".join(f"lamp {number}\n" for number in range(40)))
    return file


def test_a_run_whose_objectives_hold_and_one_that_breaks_one(url: str, log: Path, tmp_path: Path):
    slo = tmp_path / "kind.toml"
    slo.write_text(
        '[[objective]]\nphases = ["soak"]\nkind = "search"\np99_ms = 9000\nerror_share = 0.0\n'
    )
    base = tmp_path / "base"
    arguments = ("--url", url, "--queries", log, "--hours", 0.002, "--no-changes")
    done = onesearch("soak", *arguments, "--slo", slo, "--out", base, "--json")
    assert done.returncode == 0, done.stderr
    report = orjson.loads(done.stdout)
    [phase] = report["phases"]
    search = phase["kinds"]["search"]
    assert search["requests"] > 50
    assert search["outcomes"] == {"whole": search["requests"]}
    assert all(one["held"] for one in report["objectives"])
    assert (base / "report.html").stat().st_size > 1000

    run = Run.read(base)
    due = run.requests["soak", "search"].due
    # As a Poisson process has it, whatever the answers took.
    assert len(due) == pytest.approx(20 * phase["seconds"], rel=0.5)

    strict = tmp_path / "strict.toml"
    strict.write_text('[[objective]]\nphases = ["soak"]\nkind = "search"\np50_ms = 0.001\n')
    again = onesearch("report", base, "--slo", strict)
    assert again.returncode == 1
    assert "broken: soak search p50_ms" in again.stderr
    assert "BROKEN" in again.stdout

    same = onesearch("compare", base, base, "--out", tmp_path / "compared")
    assert same.returncode == 0, same.stderr
    assert "no clear difference" in same.stdout
    assert (tmp_path / "compared" / "compare.html").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "--demo", "nowhere"), "nowhere"),
        (("run", "--url", "http://127.0.0.1:9", "--queries", "LOG"), "--url http://127.0.0.1:9"),
        (("run", "--queries", "missing.csv"), "missing.csv"),
        (("soak", "--slo", "missing.toml"), "missing.toml"),
        (("run", "--minutes", "0"), "--minutes"),
        (("compare", "nowhere", "nowhere"), "nowhere"),
        (("report", "nowhere"), "nowhere"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: tuple[str, ...],
    told: str,
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    done = onesearch(*(str(log) if one == "LOG" else one for one in arguments))
    assert done.returncode == 2
    assert told in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in done.stderr
