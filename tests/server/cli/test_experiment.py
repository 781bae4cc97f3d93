import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.cli.main import main


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    assert main(["experiment", "simulate", str(folder), "--users", "1500", "--lift", "0.4"]) == 0
    return folder


@pytest.fixture
def report(simulated: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """`report(…)` → the JSON report of the simulated users."""

    def run(*arguments: str, exposures: Path | None = None) -> dict[str, Any]:
        files = ["--exposures", str(exposures or simulated / "exposures.jsonl")]
        files += ["--events", str(simulated / "events.jsonl")]
        capsys.readouterr()
        assert main(["experiment", "report", *files, *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_a_report_of_simulated_users(
    report: Callable[..., dict[str, Any]], simulated: Path, tmp_path: Path
) -> None:
    items = str(simulated / "items.jsonl")
    found = report("--items", items, "--out", str(tmp_path), "--bootstrap", "200")
    assert found["simulated"]
    assert found["trustworthy"]
    assert found["control"] == "champion"
    assert found["sample_ratio"]["ok"]
    [ctr] = [row for row in found["comparisons"] if row["metric"] == "item_ctr"]
    assert ctr["significant"]
    assert ctr["ci95"][0] < 0.4 < ctr["ci95"][1]
    assert ctr["bootstrap_ci95"] == pytest.approx(ctr["ci95"], abs=0.05)
    assert 0 < ctr["detectable"] < 0.4
    assert ctr["units_for_5_percent"] > 1_500
    assert {row["metric"] for row in found["comparisons"]} == {
        "item_ctr",
        "page_ctr",
        "page_cvr",
        "buyers",
        "orders",
    }
    assert {row["segment"] for row in found["segments"]} == {"query", "user", "item", "category"}
    assert all(row["p_corrected"] >= row["p_value"] for row in found["segments"])
    assert "simulated users" in found["notes"][0]
    assert any("by chance" in note for note in found["notes"])
    names = [Path(file).name for file in found["files"]]
    assert names == ["report.json", "report.md", "lifts.svg", "segments.svg"]
    assert "(simulated users)" in (tmp_path / "report.md").read_text()
    assert "(simulated users)" in (tmp_path / "lifts.svg").read_text()
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored == {key: value for key, value in found.items() if key != "files"}


def test_a_broken_split_is_told(
    report: Callable[..., dict[str, Any]],
    simulated: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = (simulated / "exposures.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    lost = [
        row for row in rows if not (row["arm"] == "challenger" and row["unit"].endswith(("3", "7")))
    ]
    file = tmp_path / "lost.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in lost))
    found = report(exposures=file)
    assert not found["trustworthy"]
    assert not found["sample_ratio"]["ok"]
    assert any("sample-ratio check fails" in note for note in found["notes"])
    assert report("--shares", "champion=0.56,challenger=0.44", exposures=file)["trustworthy"]
    for row in rows[::5]:
        row["arm"] = "challenger"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    crossed = report(exposures=file)
    assert not crossed["trustworthy"]
    assert any("seen in two arms" in note for note in crossed["notes"])
    events = str(simulated / "events.jsonl")
    assert main(["experiment", "report", "--exposures", str(file), "--events", events]) == 0
    assert "Do not use these figures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--control", "nobody"], "there is no arm 'nobody'; there are: challenger, champion"),
        (["--experiment", "other"], "no exposures of experiment 'other'"),
        (["--shares", "champion=half"], "are not understood"),
        (["--shares", "champion=1e400,challenger=1"], "are not understood"),
        (["--shares", "=1"], "are not understood"),
        (["--shares", "champion=0.5,champion=0.5"], "name arm 'champion' twice"),
        (["--items", "/none"], "no dataset directory and no item file"),
        (["--exposures", "/none.jsonl"], "/none.jsonl"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], told: str, simulated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--exposures", str(simulated / "exposures.jsonl")]
    files += ["--events", str(simulated / "events.jsonl")]
    capsys.readouterr()
    assert main(["experiment", "report", *files, *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert told in line
