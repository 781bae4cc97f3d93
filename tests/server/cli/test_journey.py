"""A newcomer's journey through the commands, on a shop small enough for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from index.importers.demo_shop import generate
from models.registry.registry import Registry

TINY_TRAINING = ["--examples", "512", "--batch-examples", "64", "--layers", "1"]


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
def journey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """source/ → dataset/ → snapshot/ → checkpoint/, each by its command."""
    folder = tmp_path_factory.mktemp("journey")
    generate(folder / "source", n_items=120, n_users=20, n_sessions=150)
    imported = facts("data", "import", "jsonl", folder / "source", folder / "dataset")
    assert imported["rows"]["items"] == 120
    built = facts("index", "build", folder / "dataset", folder / "snapshot", "--encoder-steps", 10)
    assert built["usage"]["items"] == 120
    trained = facts(
        "train",
        "sft",
        folder / "dataset",
        folder / "snapshot",
        folder / "checkpoint",
        *TINY_TRAINING,
    )
    assert trained["steps"] == 8
    return folder


def test_evaluate_prints_the_promised_keys(journey: Path) -> None:
    judgments = journey / "test.csv"
    exported = facts("data", "export-judgments", journey / "dataset", judgments)
    assert exported["judgments"] > 0
    report = facts(
        "evaluate",
        journey / "snapshot",
        journey / "checkpoint",
        "--judgments",
        judgments,
        "--relevant-from",
        "2.5",
        "--beam",
        "20",
    )
    assert report["simulated"] is True
    assert list(report["methods"]) == [
        "generative",
        "generative_only",
        "codec_only",
        "bm25",
        "dense",
        "hybrid",
    ]
    for row in report["methods"].values():
        assert {"recall@10", "recall@50", "hr@10", "mrr@10", "ci95", "latency_ms"} <= set(row)
    assert report["methods"]["generative"]["legal_rate"] == 1.0
    assert 0 <= report["unconstrained_valid_rate"] <= 1


def test_stats_and_codec_table(journey: Path) -> None:
    stats = facts("index", "stats", journey / "snapshot")
    assert 0 < stats["usage"]["ICR"] <= 1
    assert stats["trie"]["sids"] == stats["usage"]["sids"]
    table = facts("index", "codecs", journey / "dataset", journey / "snapshot")["rows"]
    names = [row["codec"] for row in table]
    assert names == ["plain RQ", "+ keywords", "+ level-3 balance", "+ OPQ", "chosen layout"]
    assert all(0 <= row["recall@beam100"] <= 1 for row in table)
    assert facts("index", "verify", journey / "snapshot")["ok"] is True


def test_training_leaves_a_log(journey: Path) -> None:
    lines = (journey / "checkpoint.log" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
    assert list((journey / "checkpoint.log").glob("events.out.tfevents.*"))


def test_training_continues_from_a_checkpoint(journey: Path) -> None:
    parents = [journey / "dataset", journey / "snapshot"]
    onesearch(
        *("train", "sft", *parents, journey / "second", *TINY_TRAINING),
        *("--init", journey / "checkpoint"),
    )
    done = onesearch(
        *("train", "sft", *parents, journey / "third", *TINY_TRAINING),
        *("--init", journey / "source"),
        expect=2,
    )
    assert "config.json" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["index", "build", "{}/none", "{}/x"], "none is not there"),
        (["index", "build", "{}/dataset", "{}/snapshot"], "already exists"),
        (["index", "build", "{}/dataset", "{}/x", "--layout", "12x"], "--layout '12x'"),
        (["index", "stats", "{}/dataset"], "is a dataset, expected a snapshot"),
        (["train", "sft", "{}/dataset", "{}/checkpoint", "{}/x"], "is a checkpoint"),
        (["train", "sft", "{}/dataset", "{}/snapshot", "{}/checkpoint"], "already exists"),
        (
            [
                *("evaluate", "{}/snapshot", "{}/checkpoint"),
                *("--judgments", "{}/no.csv", "--relevant-from", "1"),
            ],
            "no.csv: the file is not there",
        ),
    ],
)
def test_wrong_input_ends_in_one_line(journey: Path, arguments: list[str], told: str) -> None:
    done = onesearch(*(part.replace("{}", str(journey)) for part in arguments), expect=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert told in lines[0]
    assert done.stdout == ""


def test_demo_makes_everything_once(tmp_path: Path) -> None:
    arguments = ["demo", "--no-serve", "--items", 80, "--training-minutes", 0.05]
    arguments += ["--sessions", 300]
    first = onesearch(*arguments, "--directory", tmp_path / "var" / "demo")
    assert "simulated" in first.stderr
    champion = json.loads((tmp_path / "var" / "champion.json").read_text())
    assert set(champion) == {"snapshot", "checkpoint"}
    registry = Registry(tmp_path / "var" / "registry")
    version = registry.aliases().champion
    assert version is not None
    assert registry.problems(version) == []
    second = onesearch(*arguments, "--directory", tmp_path / "var" / "demo")
    # Lines are broken where the path of this test is long.
    assert " ".join(second.stderr.split()).count("is there") == 3
    assert f"its champion is {version}" in second.stderr.replace("\n", " ")
    assert registry.aliases().revision == 1
