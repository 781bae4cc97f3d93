"""`onesearch train ablate` on a shop for a test: a row with keywords, a report, wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from index.dataset import Dataset
from index.errors import ConfigError
from index.importers.demo_shop import generate
from index.importers.formats import import_dataset
from models.training.build import BuildSettings, build_snapshot
from models.training.encoder import EncoderSettings
from server.cli.train import app


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """source/ → dataset/ → snapshot/."""
    folder = tmp_path_factory.mktemp("shop")
    generate(folder / "source", n_items=120, n_users=20, n_sessions=150)
    import_dataset("jsonl", folder / "source", folder / "dataset")
    encoder = EncoderSettings(dimension=32, bucket_count=1 << 12, batch=128)
    settings = BuildSettings(encoder=encoder, encoder_steps=10)
    build_snapshot(Dataset.open(folder / "dataset"), folder / "snapshot", settings)
    return folder


def call(shop: Path, work: Path, *options: str) -> str:
    """Run it; what it printed on standard output."""
    arguments = ["ablate", str(shop / "dataset"), str(shop / "snapshot"), str(work), *options]
    done = CliRunner().invoke(app, arguments, catch_exceptions=True)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_a_row_with_keywords_then_its_report(shop: Path, tmp_path: Path):
    work, out = tmp_path / "work", tmp_path / "out"
    quick = ("--quick", "--seeds", "1")
    trained = json.loads(call(shop, work, *quick, "--only", "reason-keywords", "--json"))
    rows = {row["name"]: row for row in trained["rows"]}
    assert not trained["complete"]
    assert [name for name, row in rows.items() if not row["missing"]] == ["reason-keywords"]
    assert rows["reason-keywords"]["with_keywords"]
    assert (work / "keywords.parquet").exists()
    # The report trains nothing and says the same.
    text = call(shop, work, *quick, "--report", "--out", str(out), "--name", "ablation-test")
    assert "| V1 | 0 | not run |" in text
    assert (out / "ablation-test.md").read_text().rstrip() == text.rstrip()
    reported = json.loads((out / "ablation-test.json").read_text())
    assert reported["rows"] == trained["rows"]


def test_wrong_input_is_said_before_anything_is_trained(shop: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="no row 'grop'"):
        call(shop, tmp_path / "work", "--only", "grop")
    with pytest.raises(ConfigError, match="no recipe 'v9'"):
        call(shop, tmp_path / "work", "--recipe", "v9")
    with pytest.raises(ConfigError, match="holds no ablation"):
        call(shop, tmp_path / "work", "--report")
    assert not (tmp_path / "work").exists()
