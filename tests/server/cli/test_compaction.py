"""`onesearch index compact|drift` without a server; beside one: tests/server/test_upkeep.py."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.registry import promotion
from models.registry.publication import publish
from models.registry.registry import Registry
from server.cli.main import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """`run("index", …)` → the one JSON object on standard output."""

    def run(*arguments: object, status: int = 0) -> dict[str, Any]:
        assert main([*map(str, arguments), "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return run


def test_a_champion_is_compacted_when_it_is_due(
    tiny_pair: tuple[Path, Path], tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
):
    registry = Registry(tmp_path / "registry")
    first = publish(registry, *tiny_pair).record
    promotion.promote(registry, first.version)
    snapshot, _ = registry.paths(first)
    monkeypatch.setenv("ONESEARCH_REGISTRY", str(registry.path))
    assert run("index", "compact")["compacted"] is False
    live = tmp_path / "live"
    changing = ("index", "remove", snapshot, "--live", live / first.pairing.snapshot)
    assert run(*changing, "i0", "i1")["applied"] == 2
    waits = run("index", "compact", "--live", live, "--changes", "3", "--age-hours", "1")
    assert [waits["compacted"], waits["pending_changes"]] == [False, 2]
    assert waits["generation"] == first.version == registry.aliases().champion
    made = run("index", "compact", "--live", live, "--changes", "2")
    assert [made["compacted"], made["items"], made["sequence"]] == [True, 34, 2]
    assert [made["held_by_server"], made["before"]] == [False, first.version]
    assert made["generation"] == registry.aliases().champion
    assert run("index", "compact", "--live", live)["compacted"] is False
    assert run(*changing, "i2")["sequence"] == 3
    again = run("index", "compact", "--live", live)
    assert [again["before"], again["items"]] == [made["generation"], 33]
    assert run("index", "stats", again["snapshot"])["version"] == again["snapshot"].split("/")[-1]


def test_without_a_registry_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["index", "compact", "--registry", str(tmp_path / "none")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "there is no registry" in line


def test_drift_is_told(tiny_pair: tuple[Path, Path], tmp_path: Path, run: Any):
    snapshot = Path(shutil.copytree(tiny_pair[0], tmp_path / "snapshot"))
    assert run("index", "drift", snapshot)["verdict"] == "too few"
    items = tmp_path / "items.jsonl"
    rows = [{"item_id": f"n{n}", "title": f"purple quartz stool {n}"} for n in range(250)]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("index", "add", snapshot, items)
    found = run("index", "drift", snapshot)
    assert [found["added_items"], found["verdict"]] == [250, "drifted"]
    assert found["quantisation_error"]["ratio"] > found["quantisation_error"]["limit"]
    assert found["codes_used"]["CUR_L1"] == found["codes_used"]["added"] / 8
    assert run("index", "drift", snapshot, "--check", status=1) == found
