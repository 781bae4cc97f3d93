import json
from pathlib import Path

import pytest

from loadtest.bench import cli, trie
from loadtest.bench.cli import BENCHES, Bench
from server.cli.main import main

KEYS = {"what", "setting", "ours", "peers", "unit", "ratio"}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch):
    """`bench trie` on two sizes of catalogue that take no time."""
    monkeypatch.setattr(trie, "QUICK_SIZES", (50, 200))


def test_json_is_one_object_of_the_fixed_form(tiny, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "trie", "--quick", "--json", "--table", "open"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"machine", "rows"}
    assert all(set(row) >= KEYS for row in report["rows"])


def test_tables_files_and_the_list_of_parts(
    tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["bench", "trie", "--quick", "--table", "filter", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "trie, filter" in capsys.readouterr().out
    assert (tmp_path / "trie-filter.json").is_file()
    assert main(["bench", "trie", "--table", "list"]) == 0
    assert capsys.readouterr().out.split() == ["build", "memory", "open", "filter"]


def test_a_busy_machine_is_warned_of(tiny, monkeypatch, capsys: pytest.CaptureFixture[str]):
    from loadtest.bench import machine

    monkeypatch.setattr(machine.psutil, "cpu_percent", lambda interval: 80.0)
    assert main(["bench", "trie", "--quick", "--json", "--table", "open"]) == 0
    captured = capsys.readouterr()
    assert "80% busy" in captured.err
    assert json.loads(captured.out)["machine"]["busy"]


def test_parts_without_tables_run_as_a_whole(monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(BENCHES, "whole", Bench("whole_bench", "for this test"))

    class Whole:
        @staticmethod
        def rows(quick: bool):
            return []

    monkeypatch.setattr(cli, "import_module", lambda name: Whole)
    assert main(["bench", "whole", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == []
    assert main(["bench", "whole", "--table", "nope"]) == 2
    assert "it has all" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "table"),
    [("swaps", one) for one in ("native", "vllm", "replicas")] + [("overload", "rates")],
)
def test_a_table_takes_a_pair(name: str, table: str):
    snapshot, checkpoint = Path("snapshot"), Path("checkpoint")
    work = cli._chosen(name, cli._module(name), table, snapshot, checkpoint)
    assert work.keywords == {"snapshot": snapshot, "checkpoint": checkpoint}
