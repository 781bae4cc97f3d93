import subprocess
import sys
from pathlib import Path

import pytest

from server.cli import main as command_line
from server.cli.main import COMMANDS, Command, main


def test_help_names_every_command_and_loads_none(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert name in shown


def test_help_imports_neither_torch_nor_numpy():
    code = (
        "import sys; from server.cli.main import main; main(['--help']);"
        "sys.exit(bool({'torch', 'numpy', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("onesearch 0.")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nope"], "No such command 'nope'"),
        (["serve", "--port", "x"], "--port"),
        (["serve", "--port", "70000"], "port (ONESEARCH_PORT)"),
        (["serve", "--nope"], "--nope"),
        (["serve", "--engine", "other"], "engine"),
        (["serve", "--config", "/none.toml"], "is not there"),
        (["serve", "--snapshot", "/none"], "--checkpoint is missing"),
        (["bench", "nope"], "there is no benchmark 'nope'; choose one of trie, decode"),
        (["bench"], "Missing argument 'name'"),
        (["bench", "trie", "--nope"], "--nope"),
        (["bench", "trie", "--table", "nope"], "`bench trie` has no table 'nope'"),
        (["bench", "trie", "--snapshot", "x"], "--snapshot and --checkpoint go together"),
        (["bench", "trie", "--snapshot", "x", "--checkpoint", "y"], "are for all of `bench engine"),
        (["doctor", "extra"], "extra"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_a_missing_snapshot_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    missing = str(tmp_path / "none")
    status = main(["serve", "--snapshot", missing, "--checkpoint", missing, "--port", "0"])
    [line] = capsys.readouterr().err.splitlines()
    assert [status, line] == [2, f"error: snapshot {missing} is not there"]


@pytest.fixture
def failing_command(monkeypatch: pytest.MonkeyPatch):
    """`fail` becomes a command that raises what the test puts into `errors`."""
    errors: list[BaseException] = []

    def fail() -> None:
        raise errors[0]

    import server.cli.doctor as module

    monkeypatch.setattr(module, "fail", fail, raising=False)
    monkeypatch.setitem(
        command_line.COMMANDS, "fail", Command("server.cli.doctor", "fail", "Fails.")
    )
    return errors


def test_a_bug_is_one_line_and_its_traceback_only_when_asked(
    failing_command: list[BaseException], capsys: pytest.CaptureFixture[str]
):
    failing_command.append(ZeroDivisionError("two\nlines"))
    assert main(["fail"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "unexpected ZeroDivisionError: two lines" in line
    assert main(["--debug", "fail"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_130(failing_command: list[BaseException]):
    failing_command.append(KeyboardInterrupt())
    assert main(["fail"]) == 130
