"""`onesearch data`: one JSON object on standard output, statuses, clear errors."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from index.dataset import Dataset, write_dataset
from index.errors import ArtifactError, ConfigError, DataError
from server.cli.data import app


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "items.csv"
    path.write_text("sku,title\n1,Pipe\n2,\n")
    (tmp_path / "mapping.toml").write_text("[items]\nitem_id = 'sku'\n")
    return path


def arguments(source: Path, *more: str) -> list[str]:
    mapping = source.with_name("mapping.toml")
    target = source.with_name("dataset")
    return ["import", "csv", str(source), str(target), "--mapping", str(mapping), *more]


def test_import_prints_one_json_object(source: Path) -> None:
    result = CliRunner().invoke(app, arguments(source, "--json"), catch_exceptions=False)
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary["dataset"] == str(source.with_name("dataset"))
    assert summary["rows"] == {"items": 1, "users": 0, "judgments": 0, "events": 0}
    assert summary["rejected"] == {"items": {"title: empty": 1}}
    assert set(summary) == {
        *("dataset", "version", "rows", "rejected", "warnings", "splits", "notes")
    }
    assert result.stdout.count("\n") == 1


def test_import_prints_a_table(source: Path) -> None:
    result = CliRunner().invoke(app, arguments(source), catch_exceptions=False)
    assert result.exit_code == 0
    assert "rejected: items: title: empty: 1" in result.stdout
    assert "version" in result.stdout


def test_import_refuses_an_existing_dataset(source: Path) -> None:
    runner = CliRunner()
    runner.invoke(app, arguments(source), catch_exceptions=False)
    result = runner.invoke(app, arguments(source))
    assert isinstance(result.exception, ArtifactError)
    assert "--overwrite" in str(result.exception)
    again = runner.invoke(app, arguments(source, "--overwrite"), catch_exceptions=False)
    assert again.exit_code == 0


def test_strict_names_the_row(source: Path) -> None:
    result = CliRunner().invoke(app, arguments(source, "--strict"))
    assert isinstance(result.exception, DataError)
    assert "row 3, field 'title': empty" in str(result.exception)
    assert not source.with_name("dataset").exists()


def test_wrong_arguments_are_named(source: Path) -> None:
    target = str(source.with_name("dataset"))
    result = CliRunner().invoke(app, ["import", "xml", str(source), target])
    assert isinstance(result.exception, ConfigError)
    result = CliRunner().invoke(app, ["import", "csv", str(source), target])
    assert isinstance(result.exception, ConfigError)
    assert "available columns: sku, title" in str(result.exception)
    assert CliRunner().invoke(app, ["import", "csv"]).exit_code == 2


def test_validate_reports_and_fails_on_broken_data(tmp_path: Path) -> None:
    write_dataset(tmp_path / "good", items=[{"item_id": "1", "title": "Pipe"}])
    write_dataset(tmp_path / "bad", items=[{"item_id": "1", "title": ""}])
    runner = CliRunner()
    good = runner.invoke(app, ["validate", str(tmp_path / "good"), "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout)["ok"] is True
    bad = runner.invoke(app, ["validate", str(tmp_path / "bad"), "--json"])
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)["problems"] == ["items: empty title: 1 ('1')"]
    shown = runner.invoke(app, ["validate", str(tmp_path / "bad")])
    assert shown.exit_code == 1
    assert "broken: items: empty title" in shown.stdout
    missing = runner.invoke(app, ["validate", str(tmp_path / "none")])
    assert isinstance(missing.exception, ArtifactError)


def test_validate_names_leaks(tmp_path: Path) -> None:
    def event(time: float, split: str) -> dict[str, object]:
        return {
            "session_id": split,
            "user_id": "u",
            "query": None,
            "item_id": "a",
            "kind": "click",
            "time": time,
            "split": split,
        }

    events = [event(1, "test"), event(2, "train")]
    write_dataset(tmp_path / "d", items=[{"item_id": "a", "title": "a"}], events=events)
    result = CliRunner().invoke(app, ["validate", str(tmp_path / "d"), "--json"])
    assert result.exit_code == 1
    [problem] = json.loads(result.stdout)["problems"]
    assert problem.startswith("leak: training events after the user's first held-out event")


def test_simulated_behaviour_and_demo_shop(tmp_path: Path) -> None:
    shop, judged = tmp_path / "shop", tmp_path / "judged"
    command = ["demo-shop", str(shop), "--items", "120", "--users", "10", "--sessions", "50"]
    made = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    assert json.loads(made.stdout)["rows"]["items"] == 120
    opened = Dataset.open(shop)
    assert opened.simulated
    write_dataset(judged, items=opened.items.to_pylist(), judgments=opened.judgments.to_pylist())
    command = ["simulate", str(judged), str(tmp_path / "o"), "--users", "5", "--sessions", "30"]
    found = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    facts = json.loads(found.stdout)
    assert facts["simulated"] is True
    assert facts["events"]["impression"] == 300
    assert Dataset.open(tmp_path / "o").simulated
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, ArtifactError)
