"""`onesearch keywords evaluate` on the tiny snapshot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.cli.main import main


@pytest.fixture
def judgments(tmp_path: Path) -> Path:
    path = tmp_path / "judgments.csv"
    path.write_text("query,item_id,grade\nred oak desk not black,i0,3\nblack lmap,i13,3\n")
    return path


def test_report_as_json(
    tiny_pair: tuple[Path, Path], judgments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["keywords", "evaluate", str(tiny_pair[0]), "--judgments", str(judgments)]
    assert main([*arguments, "--relevant-from", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["queries"] == 2
    assert set(report["baselines"]) == {"bm25", "dense"}
    assert report["baselines"]["bm25"]["negation"]["queries"] == 1


def test_report_for_people(
    tiny_pair: tuple[Path, Path], judgments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["keywords", "evaluate", str(tiny_pair[0]), "--judgments", str(judgments)]
    assert main([*arguments, "--relevant-from", "3"]) == 0
    assert "complex" in capsys.readouterr().out


def test_nothing_to_measure_with(
    tiny_pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keywords", "evaluate", str(tiny_pair[0]), "--relevant-from", "3"]) != 0
    assert "--judgments" in capsys.readouterr().err
