"""`onesearch train` from keywords to alignment, each by its command, on a shop for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from index.importers.demo_shop import generate

BUDGET = ("--examples", 128, "--batch-examples", 64)


def onesearch(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line in its own process."""
    command = [sys.executable, "-c", "from server.cli.main import run; run()"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expect, done.stderr
    return done


def facts(*arguments: object) -> dict[str, Any]:
    """The one JSON object that `--json` prints; nothing else may be on standard output."""
    return json.loads(onesearch(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """source/ → dataset/ → snapshot/."""
    folder = tmp_path_factory.mktemp("stages")
    generate(folder / "source", n_items=120, n_users=20, n_sessions=150)
    facts("data", "import", "jsonl", folder / "source", folder / "dataset")
    facts("index", "build", folder / "dataset", folder / "snapshot", "--encoder-steps", 10)
    return folder


def test_keywords_then_fine_tuning_then_distillation_then_alignment(folder: Path):
    dataset, snapshot, keywords = folder / "dataset", folder / "snapshot", folder / "k.parquet"
    made = facts("train", "keywords", dataset, snapshot, keywords, "--pseudo-queries", 20)
    assert made["queries"] > 0
    sft, distilled, aligned = (folder / name for name in ("sft", "distilled", "aligned"))
    common = ("--layers", 1, "--keywords", keywords, "--thoughts", "query_keywords")
    shares = ("--pseudo-share", 0.5, "--history-dropout", 0.5, "--max-history", 3)
    trained = facts("train", "sft", dataset, snapshot, sft, *common, *shares, *BUDGET)
    assert trained["steps"] == 2
    assert json.loads((sft / "onesearch.json").read_text())["prompt"]["max_history"] == 3
    trained = facts(
        *("train", "distill", dataset, snapshot, distilled, "--init", sft),
        *("--keywords", keywords, "--no-focal", "--fgm", 0, *BUDGET),
    )
    assert trained["kl"] >= 0
    assert trained["adversarial"] == 0
    trained = facts(
        *("train", "align", dataset, snapshot, aligned, "--init", distilled),
        *("--method", "grpo", "--group", 4, "--examples", 32, "--batch-examples", 16),
    )
    assert trained["episodes"] > 0
    manifest = json.loads((aligned / "manifest.json").read_text())
    assert manifest["stage"] == "align"
    assert manifest["components"]["sft"]["thoughts"] == ["query_keywords"]
    assert manifest["components"]["distill"]["fgm"] == 0
    assert manifest["components"]["align"]["method"] == "grpo"
    lines = (folder / "aligned.log" / "metrics.jsonl").read_text().splitlines()
    assert {"reward", "hits", "anchor_ce", "loss"} <= json.loads(lines[0]).keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sft", "--thoughts", "none"), "--keywords FILE"),
        (("sft", "--keywords", "{folder}/nothing.parquet"), "nothing.parquet"),
        (("align", "--init", "{folder}/nothing"), "nothing"),
        (("align", "--init", "{folder}/snapshot"), "snapshot"),
    ],
)
def test_a_wrong_input_is_one_line(folder: Path, arguments: tuple[str, ...], words: str):
    command, *options = (argument.format(folder=folder) for argument in arguments)
    done = onesearch(
        *("train", command, folder / "dataset", folder / "snapshot", folder / "never", *options),
        expect=2,
    )
    assert words in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr
    assert not (folder / "never").exists()
