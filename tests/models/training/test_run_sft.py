"""From a simulated shop to a checkpoint, as the commands do it, in miniature."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.dataset import Dataset
from index.errors import ArtifactError
from index.importers.demo_shop import generate
from index.importers.formats import import_dataset
from index.snapshot import Snapshot
from models.prompt import PromptBuilder, PromptSettings
from models.tokenizer import Tokenizer
from models.training import sft
from models.training.build import BuildSettings, build_snapshot, fit_pseudo_queries
from models.training.curriculum import Curriculum, Mixture
from models.training.encoder import EncoderSettings
from models.training.evaluate import METHODS, METRICS, evaluate
from models.training.material import read_material
from models.training.relevance import relevant_rows
from models.training.run_evaluate import searchers_of
from models.training.run_sft import SftRun, run_sft
from models.training.sft import SftSettings
from models.training.state import state_path
from models.training.teacher import Teacher

TINY = SftSettings(
    hidden_size=32,
    layers=1,
    heads=2,
    key_heads=1,
    head_dim=16,
    inner_size=64,
    vocabulary_size=400,
    examples=2560,
    batch_examples=64,
    chunk_examples=256,
    learning_rate=5e-3,
)


def tiny_run(shop: Path, checkpoint: Path, **changes: object) -> SftRun:
    return SftRun(
        Dataset.open(shop / "dataset"),
        Snapshot.open(shop / "snapshot"),
        checkpoint,
        settings=replace(TINY, **changes),  # pyright: ignore[reportArgumentType]
    )


def tiny_curriculum(shop: Path) -> tuple[Curriculum, Tokenizer, Snapshot]:
    dataset, snapshot = Dataset.open(shop / "dataset"), Snapshot.open(shop / "snapshot")
    material = read_material(dataset)
    tokenizer = Tokenizer.train(material.item_texts, 400, layout=snapshot.layout)
    curriculum = Curriculum(
        snapshot,
        material,
        PromptBuilder(tokenizer, PromptSettings(query_code_count=2)),
        fit_pseudo_queries(material),
        Teacher(snapshot.dense.vectors(np.arange(len(snapshot.items))), snapshot.lexical),
        mixture=Mixture(),
        chunk_examples=200,
        seed=3,
    )
    return curriculum, tokenizer, snapshot


def test_the_dataset_says_that_it_is_simulated(shop: Path) -> None:
    assert Dataset.open(shop / "dataset").simulated
    assert Snapshot.open(shop / "snapshot").manifest["simulated"] is True


def test_same_dataset_gives_the_same_snapshot(shop: Path, tmp_path: Path) -> None:
    encoder = EncoderSettings(dimension=32, bucket_count=1 << 12, batch=128)
    settings = BuildSettings(encoder=encoder, encoder_steps=15)
    again = build_snapshot(Dataset.open(shop / "dataset"), tmp_path / "again", settings)
    assert again.version == Snapshot.open(shop / "snapshot").version


@pytest.mark.parametrize("phase", ["encoder", "codec", "writing"])
def test_a_killed_build_publishes_nothing_and_runs_again(
    shop: Path, tmp_path: Path, phase: str
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from index.dataset import Dataset\n"
        "from models.training.build import BuildSettings, build_snapshot\n"
        "from models.training.encoder import EncoderSettings\n"
        "def report(phase, done, total, loss):\n"
        "    print(phase, flush=True)\n"
        "    time.sleep(30 if phase == sys.argv[3] else 0)\n"
        "encoder = EncoderSettings(dimension=32, bucket_count=1 << 12, batch=128)\n"
        "settings = BuildSettings(encoder=encoder, encoder_steps=15)\n"
        "build_snapshot(Dataset.open(sys.argv[1]), Path(sys.argv[2]), settings, report=report)\n"
    )
    target = tmp_path / "snapshot"
    command = [sys.executable, "-c", code, str(shop / "dataset"), str(target), phase]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as build:
        assert build.stdout is not None
        for line in build.stdout:
            if line.strip() == phase:
                os.kill(build.pid, signal.SIGKILL)
                break
    assert not target.exists()
    encoder = EncoderSettings(dimension=32, bucket_count=1 << 12, batch=128)
    settings = BuildSettings(encoder=encoder, encoder_steps=15)
    again = build_snapshot(Dataset.open(shop / "dataset"), target, settings)
    assert again.version == Snapshot.open(shop / "snapshot").version
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_chunks_are_functions_of_seed_stage_and_number(shop: Path, stage: int) -> None:
    curriculum, _, _ = tiny_curriculum(shop)
    other, _, _ = tiny_curriculum(shop)
    first, same = curriculum.chunk(5, stage), other.chunk(5, stage)
    assert [list(p) for p in first.prompts] == [list(p) for p in same.prompts]
    assert np.array_equal(first.target_codes, same.target_codes)
    different = curriculum.chunk(6, stage)
    assert [list(p) for p in first.prompts] != [list(p) for p in different.prompts]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_target_is_a_legal_sid_and_weights_sum_to_one(shop: Path, stage: int) -> None:
    curriculum, _, snapshot = tiny_curriculum(shop)
    examples = curriculum.chunk(0, stage)
    total = examples.target_weights.sum(axis=1)
    is_text = np.array([len(text) > 0 for text in examples.texts])
    assert np.allclose(total[~is_text], 1, atol=1e-4)
    assert (total[is_text] == 0).all()
    used = examples.target_codes[examples.target_weights > 0]
    assert (snapshot.trie.find(snapshot.layout.pack(used)) >= 0).all()


def test_search_prompts_carry_histories_of_users(shop: Path) -> None:
    curriculum, tokenizer, _ = tiny_curriculum(shop)
    history = tokenizer.special["<|history|>"]
    prompts = curriculum.chunk(0, 3).prompts
    assert 0 < sum(history in list(prompt) for prompt in prompts) < len(prompts)


def test_a_new_decoder_starts_as_the_nearest_centroid_router(shop: Path) -> None:
    """With the prior and untrained weights the first level ranks codes by ⟨e, centroid⟩."""
    curriculum, tokenizer, snapshot = tiny_curriculum(shop)
    settings = replace(TINY, hidden_size=32)
    model = sft.new_model(settings, tokenizer, snapshot.codec, snapshot.encoder).eval()
    hidden = model.hidden(_row(curriculum.chunk(0, 3).prompts[0]))[0, -1]
    noise = model.level_logits(hidden, tokenizer.level_slice(0))
    assert float(noise.detach().abs().max()) < 1.0
    rows = model.model.embed_tokens.weight[tokenizer.level_slice(0)].detach().numpy()
    centroids = snapshot.codec.centroids[0]
    cosine = (
        (rows * centroids).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(centroids, axis=1)
    )
    assert np.allclose(cosine, 1, atol=1e-4)


def test_training_learns_and_publishes_a_checkpoint_that_evaluates(
    shop: Path, tmp_path: Path
) -> None:
    losses: list[float] = []
    checkpoint = run_sft(
        tiny_run(shop, tmp_path / "checkpoint", examples=6400),
        report=lambda step: losses.append(step.loss),
    )
    assert len(losses) == 100
    assert np.mean(losses[-20:]) < 0.93 * np.mean(losses[20:40])
    assert checkpoint.settings.simulated
    assert checkpoint.metrics["examples"] == 6400
    assert set(checkpoint.settings.rescoring) >= {"sid", "dense", "lexical", "codec_only"}
    assert not state_path(tmp_path / "checkpoint").exists()
    snapshot = Snapshot.open(shop / "snapshot")
    dataset = Dataset.open(shop / "dataset")
    searchers = searchers_of(snapshot, checkpoint, 20)
    report = evaluate(searchers, relevant_rows(dataset, "test"), METHODS)
    assert list(report["methods"]) == list(METHODS)
    for row in report["methods"].values():
        for name in METRICS:
            low, high = row["ci95"][name]
            assert 0 <= low <= row[name] <= high <= 1
    assert report["methods"]["generative"]["legal_rate"] == 1.0


def test_a_killed_run_ends_in_the_same_checkpoint(
    shop: Path, kill_and_continue: Callable[[str, list[str], int], tuple[str, str]]
) -> None:
    """kill −9 in the middle, run again: the weights equal those of a run that was left alone."""
    program = (
        "import sys, time; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from test_run_sft import tiny_run\n"
        "from models.training.run_sft import run_sft\n"
        "target, pause, shop = sys.argv[1:]\n"
        "def report(step):\n"
        "    print(step.step, flush=True)\n"
        "    time.sleep(float(pause))\n"
        "run_sft(tiny_run(Path(shop), Path(target), save_every_s=0.0), report)\n"
    )
    whole, resumed = kill_and_continue(program, [str(shop)], 17)
    assert whole == resumed


def test_a_budget_of_minutes_ends_the_run_in_time(shop: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    checkpoint = run_sft(tiny_run(shop, tmp_path / "short", examples=10_000_000, max_minutes=0.05))
    assert checkpoint.metrics["steps"] < 10_000_000 / 64
    assert time.monotonic() - started < 120


def test_a_snapshot_of_another_catalogue_is_refused(shop: Path, tmp_path: Path) -> None:
    generate(tmp_path / "source", n_items=60, n_users=10, n_sessions=30)
    import_dataset("jsonl", tmp_path / "source", tmp_path / "dataset")
    run = replace(tiny_run(shop, tmp_path / "x"), dataset=Dataset.open(tmp_path / "dataset"))
    with pytest.raises(ArtifactError, match="build the snapshot from it"):
        run_sft(run)


def test_a_snapshot_of_another_split_is_refused(shop: Path, tmp_path: Path) -> None:
    """The same items with one judgment less: the encoder may know what is now a test query."""
    source = tmp_path / "source"
    shutil.copytree(shop / "source", source)
    lines = (source / "judgments.jsonl").read_text().splitlines()
    (source / "judgments.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    import_dataset("jsonl", source, tmp_path / "dataset")
    run = replace(tiny_run(shop, tmp_path / "x"), dataset=Dataset.open(tmp_path / "dataset"))
    with pytest.raises(ArtifactError, match="was not built from dataset"):
        run_sft(run)


def test_an_existing_checkpoint_is_kept(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ArtifactError, match="already exists"):
        run_sft(tiny_run(shop, tmp_path / "there"))


def _row(prompt: object):
    import torch

    return torch.tensor([list(prompt)], dtype=torch.int64)  # pyright: ignore[reportArgumentType]
