"""A tiny simulated shop with its snapshot, and a kill −9 in the middle of a training run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from index.dataset import Dataset
from index.importers.demo_shop import generate
from index.importers.formats import import_dataset
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.training.build import BuildSettings, build_snapshot
from models.training.encoder import EncoderSettings
from models.training.keyword_table import read_keywords
from models.training.material import read_material
from models.training.run_sft import SftRun, run_sft
from models.training.sft import SftSettings
from models.training.state import state_path


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset of a simulated shop and its snapshot."""
    folder = tmp_path_factory.mktemp("shop")
    generate(folder / "source", n_items=150, n_users=30, n_sessions=250)
    import_dataset("jsonl", folder / "source", folder / "dataset")
    encoder = EncoderSettings(dimension=32, bucket_count=1 << 12, batch=128)
    settings = BuildSettings(encoder=encoder, encoder_steps=15)
    build_snapshot(Dataset.open(folder / "dataset"), folder / "snapshot", settings)
    return folder


@pytest.fixture(scope="session")
def pretrained(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with keywords of the shop's queries and a checkpoint that was trained with them."""
    folder = tmp_path_factory.mktemp("pretrained")
    dataset, snapshot = Dataset.open(shop / "dataset"), Snapshot.open(shop / "snapshot")
    lines = [
        json.dumps({"query": query, "terms": query.split()[::-1]})
        for query in read_material(dataset).queries
    ]
    (folder / "keywords.jsonl").write_text("\n".join(lines))
    tiny = SftSettings(
        hidden_size=32,
        layers=1,
        heads=2,
        key_heads=1,
        head_dim=16,
        inner_size=64,
        vocabulary_size=400,
        examples=1280,
        batch_examples=64,
        chunk_examples=256,
        learning_rate=5e-3,
    )
    keywords = read_keywords(folder / "keywords.jsonl")
    run_sft(SftRun(dataset, snapshot, folder / "checkpoint", keywords=keywords, settings=tiny))
    return folder


@pytest.fixture
def kill_and_continue(tmp_path: Path) -> Callable[[str, list[str], int], tuple[str, str]]:
    """Runs a program twice, once left alone, and once killed at a step and started again; gives the
    versions of both checkpoints.

    The program is called with the checkpoint to write, the seconds to pause after each step, and
    further arguments; it prints each step's number.
    """

    def start(program: str, target: Path, pause: float, rest: list[str]) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, str(target), str(pause), *rest]
        here = str(Path(__file__).parent)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([here, str(Path.cwd())])}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def run(program: str, arguments: list[str], kill_at: int) -> tuple[str, str]:
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        with start(program, whole, 0, arguments) as alone:
            alone.communicate(timeout=240)
        with start(program, killed, 0.05, arguments) as stopped:
            assert stopped.stdout is not None
            for line in stopped.stdout:
                if int(line) == kill_at:
                    os.kill(stopped.pid, signal.SIGKILL)
                    break
        assert not killed.exists()
        counters = json.loads((state_path(killed) / "counters.json").read_text())
        assert 1 <= counters["step"] <= kill_at + 1
        with start(program, killed, 0, arguments) as resumed:
            output, _ = resumed.communicate(timeout=240)
        assert int(output.split()[0]) == counters["step"] + 1
        return Checkpoint.open(whole).version, Checkpoint.open(killed).version

    return run
