import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import Checkpoint, save_checkpoint
from models.registry.registry import Registry
from server.cli.main import main
from server.generation import Generation, write_champion

Command = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def other_pair(
    tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The same snapshot with another checkpoint."""
    opened = Checkpoint.open(tiny_pair[1])
    path = tmp_path_factory.mktemp("other") / "checkpoint"
    settings = replace(opened.settings, level_prior_beta=1.0)
    save_checkpoint(path, opened.load_model(), opened.tokenizer, settings, {})
    return tiny_pair[0], path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "registry"
    monkeypatch.setenv("ONESEARCH_REGISTRY", str(path))
    return path


@pytest.fixture
def command(folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("list")` → the JSON object that `generations list --json` prints."""

    def run(*arguments: str, status: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["generations", *arguments, "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def failing(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`failing("promote", "x")` → the one line that it ends with."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["generations", *arguments]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    return run


def test_a_generation_from_publication_to_removal(
    command: Command,
    failing: Callable[..., str],
    tiny_pair: tuple[Path, Path],
    other_pair: tuple[Path, Path],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = command("publish", *map(str, tiny_pair), "--promote", "--who", "ann", "--why", "start")
    assert [first["new"], first["aliases"], first["simulated"]] == [True, ["champion"], True]
    second = command("publish", *map(str, other_pair), "--challenger")
    assert second["parents"] == [first["version"]]
    assert "champion is" in failing("promote", "challenger", "--expect-champion", "none")
    state = command("promote", "challenger", "--expect-champion", "champion", "--why", "better")
    assert [state["champion"], state["previous"]] == [second["version"], first["version"]]
    assert [state["challenger"], state["why"], state["revision"]] == [None, "better", 3]
    shown = command("show", first["version"][:6])
    assert shown["aliases"] == ["previous"]
    assert [event["what"] for event in shown["events"]] == [
        "publish",
        "promote",
        "challenge",
        "promote",
    ]
    Generation.open(Path(shown["snapshot_path"]), Path(shown["checkpoint_path"])).close()
    assert command("rollback", "--why", "slow")["champion"] == first["version"]
    assert command("challenge", "previous")["challenger"] == second["version"]
    assert command("challenge", "none")["challenger"] is None
    assert command("gc", "--keep", "0")["removed"]["generations"] == []
    listed = command("list")
    assert [row["version"] for row in listed["generations"]] == [
        second["version"],
        first["version"],
    ]
    assert command("verify")["ok"]
    assert command("events", "--last", "1")["events"][0]["what"] == "challenge"
    for arguments in (["list"], ["show"], ["verify"], ["events"], ["gc", "--dry-run"]):
        assert main(["generations", *arguments]) == 0
        assert first["version"] in capsys.readouterr().out
    third = command("publish", first["snapshot"], first["checkpoint"])
    assert [third["new"], third["version"]] == [False, first["version"]]


def test_a_canary_from_its_start_to_its_end(
    command: Command,
    failing: Callable[..., str],
    tiny_pair: tuple[Path, Path],
    other_pair: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command("publish", *map(str, tiny_pair), "--promote")
    second = command("publish", *map(str, other_pair))["version"]
    state = command("canary", second, "--share", "0.05", "--who", "ann", "--why", "try")
    assert state["canary"] == {"experiment": f"canary-{second}", "share": 0.05}
    assert [state["challenger"], state["what"], state["who"]] == [second, "canary", "ann"]
    grown = command("canary", "challenger", "--share", "0.2", "--expect-champion", "champion")
    assert grown["canary"] == {"experiment": f"canary-{second}", "share": 0.2}
    assert command("list")["aliases"]["canary"] == grown["canary"]
    assert "challenger is not set" not in failing("canary", "champion", "--share", "0.1")
    assert "--share is missing" in failing("canary", second)
    assert "above 0 and below 1" in failing("canary", second, "--share", "1")
    assert "takes neither" in failing("canary", "stop", "--share", "0.1")
    moved = failing("canary", second, "--share", "0.1", "--expect-challenger", "champion")
    assert f"challenger is {second} by now" in moved
    named = command("canary", second, "--share", "0.2", "--expect-challenger", "challenger")
    assert named["canary"] == grown["canary"]
    assert main(["generations", "canary", second, "--share", "0.3"]) == 0
    assert "canary: 0.3 of the users" in capsys.readouterr().out
    assert command("canary", "stop", "--why", "enough")["canary"] is None
    assert "no canary" in failing("canary", "stop")


def test_damage_ends_verify_with_status_1(
    command: Command, tiny_pair: tuple[Path, Path], folder: Path, failing: Callable[..., str]
) -> None:
    version = command("publish", *map(str, tiny_pair))["version"]
    registry = Registry(folder)
    _, checkpoint = registry.paths(registry.record(version))
    (checkpoint / "model.safetensors").write_bytes(b"")
    report = command("verify", version, status=1)
    assert not report["ok"]
    [problem] = report["generations"][version]
    assert "model.safetensors has 0 bytes" in problem
    assert "model.safetensors has 0 bytes" in failing("promote", version)
    assert registry.aliases().champion is None


def test_the_champion_file_names_what_to_publish(
    command: Command,
    failing: Callable[..., str],
    tiny_pair: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    champion = tmp_path / "champion.json"
    assert "there is no champion at" in failing("publish", "--champion-file", str(champion))
    write_champion(champion, *tiny_pair)
    done = command("publish", "--champion-file", str(champion), "--promote")
    assert done["aliases"] == ["champion"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["list"], "there is no registry at"),
        (["gc"], "there is no registry at"),
        (["publish", "x"], "CHECKPOINT is missing"),
        (["publish", "x", "y"], "snapshot x is not there"),
        (["publish", "x", "y", "--promote", "--challenger"], "exclude each other"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], told: str, failing: Callable[..., str]
) -> None:
    assert told in failing(*arguments)


def test_lists_do_not_wait_for_torch() -> None:
    code = (
        "import sys; import server.cli.generations;"
        "sys.exit(bool({'torch', 'numpy', 'fastapi'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
