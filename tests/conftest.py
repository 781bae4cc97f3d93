"""Shared by all tests: a tiny real generation (36 items, 3 levels, 2 layers, random weights)."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch

from index.attributes import AttributeDictionary
from index.codec import Codec
from index.dataset import ITEMS
from index.encoder import StaticEncoder
from index.sid import SidLayout
from index.snapshot import Snapshot, texts_of
from models.checkpoint import CheckpointSettings, save_checkpoint
from models.tokenizer import Tokenizer
from models.transformer import Qwen3, Qwen3Config

LAYOUT = SidLayout((8, 4, 4))
DIMENSION = 16
BUCKETS = 512
COLORS = ("red", "black", "white")
MATERIALS = ("oak", "steel", "glass")
THINGS = ("desk", "lamp", "shelf", "chair")


class TinyPair(NamedTuple):
    """Directories of a snapshot and a checkpoint that belong together."""

    snapshot: Path
    checkpoint: Path


@pytest.fixture(scope="session", autouse=True)
def settings_of_tests() -> Generator[None, None, None]:
    """What every server of a test has, unless the test says otherwise.

    It starts no Redis in the working directory by itself, and computes in float32: "auto" is
    measured, and on a busy machine two engines of one test could choose two types.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESEARCH_EVENTS", "false")
        patch.setenv("ONESEARCH_ENGINE_DTYPE", "float32")
        yield


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    folder = tmp_path_factory.mktemp("tiny")
    snapshot = write_tiny_snapshot(folder / "snapshot")
    return TinyPair(snapshot.path, write_tiny_checkpoint(folder / "checkpoint", snapshot))


@pytest.fixture(scope="session")
def other_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same catalogue under another codec: nothing of `tiny_pair` fits it."""
    return write_tiny_snapshot(tmp_path_factory.mktemp("other") / "snapshot", seed=5).path


def tiny_items() -> pa.Table:
    """Item i0 … i35; the last has markup for a title, no price and no lists."""
    rows = [
        {
            "item_id": f"i{number}",
            "title": f"{color} {material} {thing}",
            "brand": "Acme" if number % 2 else "Nord",
            "category": ["home", thing],
            "color": [color],
            "material": [material],
            "price": float(number + 1),
            "stock": number % 3,
            "popularity": float(number % 5),
        }
        for number, (color, material, thing) in enumerate(
            (color, material, thing)
            for color in COLORS
            for material in MATERIALS
            for thing in THINGS
        )
    ]
    rows[-1] = {"item_id": "i35", "title": "<img src=x onerror=alert(1)> white glass chair"}
    return pa.Table.from_pylist(rows, schema=ITEMS)


def write_tiny_snapshot(path: Path, seed: int = 0) -> Snapshot:
    random = np.random.default_rng(seed)
    items = tiny_items()
    table = random.standard_normal((BUCKETS, DIMENSION)).astype(np.float32)
    encoder = StaticEncoder.from_table(table, np.arange(BUCKETS, dtype=np.int32))
    embeddings = encoder.encode(texts_of(items))
    centroids = tuple(
        embeddings[random.choice(len(items), size, replace=False)] / (level + 1) ** 2
        for level, size in enumerate(LAYOUT.level_sizes)
    )
    codec = Codec(LAYOUT, centroids, ("rq",) * LAYOUT.levels)
    Snapshot.write(
        path,
        items=items,
        encoder=encoder,
        attributes=AttributeDictionary.of({"Color": {color: [] for color in COLORS}}),
        codec=codec,
        codes=codec.encode(embeddings),
        embeddings=embeddings,
        report={},
        simulated=True,
        keyword_fusion=0.0,
        dataset_version="tiny",
    )
    return Snapshot.open(path)


def write_tiny_checkpoint(path: Path, snapshot: Snapshot, *, level_prior_beta: float = 2.0) -> Path:
    titles = texts_of(snapshot.items.table)
    tokenizer = Tokenizer.train(titles, 280, layout=snapshot.layout)
    config = Qwen3Config(
        vocab_size=tokenizer.size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        # vLLM's attention on a CPU takes heads of 32 and larger.
        head_dim=32,
    )
    settings = CheckpointSettings(
        level_sizes=snapshot.layout.level_sizes,
        sid_offset=tokenizer.sid_offset,
        level_prior_beta=level_prior_beta,
        snapshot_version=snapshot.version,
        codec_id=snapshot.codec.id,
        simulated=True,
    )
    model = Qwen3(config).initialise(torch.Generator().manual_seed(0))
    save_checkpoint(path, model, tokenizer, settings, {})
    return path
