"""A tiny ablation from end to end: trained once, measured, reported, killed and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from index.dataset import Dataset
from index.errors import ArtifactError
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.training.ablation import Ablation, run_ablation
from models.training.ablation_measurement import MeasuredVisits
from models.training.ablation_recipe import Node, Recipe, Row, quick_sizes
from models.training.ablation_report import build_report
from models.training.ablation_text import MISSING, as_markdown, write_report
from models.training.keyword_table import Terms, read_keywords
from models.training.loop import Progress
from models.training.state import state_path
from models.training.visits import Visit

PROGRAM = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_ablation import run, tiny
def report(step):
    print(step.step, flush=True)
    time.sleep(float(sys.argv[4]))
run(tiny(*map(Path, sys.argv[1:4])), only=("v1", "cot"), report=report)
"""


def tiny_recipe() -> Recipe:
    """One row of each stage, and one that is served with keywords."""
    quick = quick_sizes()
    fast: dict[str, Any] = {"examples": 384, "batch_examples": 64, "chunk_examples": 192}
    sizes = replace(
        quick,
        sft=replace(quick.sft, **fast, hidden_size=32, vocabulary_size=400),
        distill=replace(quick.distill, **fast),
        align=replace(quick.align, examples=32, batch_examples=16),
        validation_visits=20,
        test_visits=30,
        beam_width=8,
    )
    nodes = (
        Node("v1", "sft", keywords=False),
        Node("cot", "sft"),
        Node("distilled", "distill", "cot"),
        Node("aligned", "align", "distilled"),
    )
    rows = (
        Row("v1", "V1", "v1", published=(0.1, 0.1, 0.1, 0.1)),
        Row("cot", "+ CoT tasks", "cot", ("v1",), published=(0.2, 0.1, 0.2, 0.1)),
        Row("rag", "V2-RAG", "cot", ("cot",), with_keywords=True),
        Row("distilled", "+ self-distillation", "distilled", ("cot", "rag")),
        Row("aligned", "+ TPMA", "aligned", ("distilled",)),
    )
    return Recipe("tiny", nodes, rows, sizes)


def tiny(shop: Path, keywords: Path, work: Path, seeds: int = 1) -> Ablation:
    return Ablation(
        Dataset.open(shop / "dataset"),
        Snapshot.open(shop / "snapshot"),
        work,
        tiny_recipe(),
        read_keywords(keywords),
        seeds,
    )


def reversed_words(visits: Sequence[Visit]) -> list[Terms]:
    return [tuple(visit.query.split()[::-1]) for visit in visits]


def visits_of(ablation: Ablation) -> MeasuredVisits:
    sizes = ablation.recipe.sizes
    return MeasuredVisits.read(ablation.dataset, sizes.validation_visits, sizes.test_visits)


def run(ablation: Ablation, **options: Any) -> bool:
    return run_ablation(ablation, visits_of(ablation), reversed_words, **options)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums are the same whatever ran in this process before, and in the killed one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def work(
    shop: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Ablation:
    """An ablation of two seeds that is done."""
    folder = tmp_path_factory.mktemp("ablation")
    ablation = tiny(shop, pretrained / "keywords.jsonl", folder, seeds=2)
    said: list[str] = []
    asked: list[int] = []

    def asked_for(visits: Sequence[Visit]) -> list[Terms]:
        asked.append(len(visits))
        return reversed_words(visits)

    visits = visits_of(ablation)
    assert run_ablation(ablation, visits, asked_for, announce=said.append)
    # Keywords are asked for by the row that shows them, and by nothing else.
    assert asked == [len(visits.validation), len(visits.test)] * 2
    trained = [line for line in said if not line.endswith("measuring")]
    # Seed 1 goes through everything before seed 2 begins; every node once.
    nodes = ("v1: sft", "cot: sft", "distilled: distill", "aligned: align")
    assert trained == [f"seed {seed}, {node}" for seed in (1, 2) for node in nodes]
    return ablation


def test_the_report_holds_every_row_and_interval(work: Ablation):
    report = build_report(work, visits_of(work))
    assert report["complete"] and report["simulated"]
    rows = {row["name"]: row for row in report["rows"]}
    for row in rows.values():
        assert row["seeds"] == [1, 2]
        for ranking in ("decoder", "served"):
            cell = row["figures"][ranking]["click"]
            for metric in ("hr@10", "mrr@10"):
                low, high = cell["ci95"][metric]
                assert 0 <= low <= cell[metric] <= high <= 1
        assert all(0 <= rate <= 1 for rate in row["valid_rate"])
        assert "tail" in row["slices"] and "history" in row["slices"]
    gained = rows["cot"]["differences"]["v1"]["decoder"]["click"]["mrr@10"]
    levels = [rows[name]["figures"]["decoder"]["click"]["mrr@10"] for name in ("cot", "v1")]
    assert gained == pytest.approx(levels[0] - levels[1])
    assert rows["distilled"]["differences"].keys() == {"cot", "rag"}
    # The same weights, with keywords in the prompts of one.
    assert rows["rag"]["model_versions"] == rows["cot"]["model_versions"]
    # Seeds differ in their weights.
    assert len(set(rows["v1"]["model_versions"])) == 2


def test_what_is_there_is_not_done_again(work: Ablation):
    said: list[str] = []
    assert run(work, announce=said.append)
    assert said == []


def test_other_settings_are_refused(work: Ablation):
    sizes = replace(work.recipe.sizes, sft=replace(work.recipe.sizes.sft, learning_rate=1e-4))
    other = replace(work, recipe=replace(work.recipe, sizes=sizes))
    with pytest.raises(ArtifactError, match="other data or settings"):
        run(other)
    with pytest.raises(ArtifactError, match="other data or settings"):
        build_report(other, visits_of(other))


def test_tables_plot_and_json(work: Ablation, tmp_path: Path):
    report = build_report(work, visits_of(work))
    files = write_report(report, "ablation-tiny", tmp_path)
    assert json.loads(files[0].read_text())["rows"][0]["name"] == "v1"
    text = files[1].read_text()
    assert text.startswith("# ablation-tiny")
    assert text.count("| + CoT tasks | V1 | 2 |") == 2
    assert "+0.1000" in text
    assert MISSING not in text
    if len(files) > 2:
        assert "<svg" in files[2].read_text()


def test_only_a_row_and_what_it_starts_from(shop: Path, pretrained: Path, tmp_path: Path):
    ablation = tiny(shop, pretrained / "keywords.jsonl", tmp_path)
    assert run(ablation, only=("distilled",))
    assert sorted(path.name for path in (tmp_path / "seed-1").iterdir()) == ["cot", "distilled"]
    report = build_report(ablation, visits_of(ablation))
    assert not report["complete"]
    missing = {row["name"] for row in report["rows"] if row["missing"]}
    assert missing == {"v1", "cot", "rag", "aligned"}
    assert report["rows"][3]["differences"] == {}
    text = as_markdown(report, "x")
    assert f"| V1 | 0 | {MISSING} |" in text


def test_time_that_is_up_cuts_a_training_off(
    shop: Path, pretrained: Path, tmp_path: Path, work: Ablation
):
    ablation = tiny(shop, pretrained / "keywords.jsonl", tmp_path)
    assert not run(ablation, max_minutes=0.0)
    assert not (tmp_path / "seed-1").exists()
    steps: list[int] = []

    def count(step: Progress) -> None:
        steps.append(step.step)

    def minute_by_step() -> float:
        return 60.0 * len(steps)

    assert not run(
        ablation,
        max_minutes=2.5,
        only=("v1",),
        report=count,
        clock=minute_by_step,
    )
    assert steps == [1, 2, 3]
    assert not (tmp_path / "seed-1" / "v1" / "checkpoint").exists()
    assert run(ablation, only=("v1",))
    versions = {
        Checkpoint.open(folder / "seed-1" / "v1" / "checkpoint").version
        for folder in (tmp_path, work.work)
    }
    assert len(versions) == 1


def test_killed_and_continued(shop: Path, pretrained: Path, tmp_path: Path, work: Ablation):
    """Killed in the second training, started again: the same weights as without the kill."""
    keywords = pretrained / "keywords.jsonl"
    folder = tmp_path / "killed"

    def start(pause: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, str(shop), str(keywords), str(folder)]
        here = [str(Path(__file__).parent), str(Path.cwd())]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(here)}
        return subprocess.Popen(
            [*command, str(pause)], stdout=subprocess.PIPE, text=True, env=environment
        )

    with start(0.05) as stopped:
        assert stopped.stdout is not None
        numbers = iter(stopped.stdout)
        while not (folder / "seed-1" / "cot" / "node.json").exists():
            next(numbers)
        next(numbers)
        os.kill(stopped.pid, signal.SIGKILL)
    assert (folder / "seed-1" / "v1" / "student.json").exists()
    assert not (folder / "seed-1" / "cot" / "checkpoint").exists()
    with start(0.0) as resumed:
        resumed.communicate(timeout=240)
    assert resumed.returncode == 0
    for node in ("v1", "cot"):
        target = folder / "seed-1" / node / "checkpoint"
        assert not state_path(target).exists()
        whole = Checkpoint.open(work.work / "seed-1" / node / "checkpoint")
        assert Checkpoint.open(target).version == whole.version
