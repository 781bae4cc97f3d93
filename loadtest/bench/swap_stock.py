"""Three generations for the benchmark of swaps, and what is right for each of them.

    first    a snapshot and a checkpoint
    second   the same snapshot, other weights
    other    another shop: other items, encoder, codec and weights

Whether an answer is of one generation is checked twice. Against the tables on disk: every hit is an
item of the snapshot that the answer names, under the SID it has there. Against the answers that the
server gave while only that generation was live.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from index.dataset import Dataset
from index.importers.demo_shop import generate
from index.importers.formats import import_dataset
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint, save_checkpoint
from models.registry import promotion
from models.registry.publication import publish
from models.registry.registry import Provenance, Registry
from models.training.build import BuildSettings, build_snapshot
from models.training.run_sft import SftRun, run_sft
from models.training.sft import SftSettings

BY = Provenance("onesearch bench swaps", "benchmark")
NOISE = 0.1
"""Of the second generation's weights, as a share of each tensor's standard deviation."""
OTHER_ITEMS, OTHER_USERS, OTHER_SESSIONS, OTHER_SEED = 1000, 40, 400, 8
OTHER_ENCODER_STEPS = 20
OTHER_MINUTES = 0.05
SAME_SCORE = 1e-3
"""Scores of one search differ by rounding with what else is in its batch, so two hits that are this
near may change places."""

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stock:
    """A registry with `first` as champion, and by snapshot version the SID of each item."""

    path: Path
    first: str
    second: str
    other: str | None
    sids: Mapping[str, Mapping[str, str]]

    @property
    def versions(self) -> list[str]:
        return [one for one in (self.first, self.second, self.other) if one is not None]


def make_stock(folder: Path, snapshot: Path, checkpoint: Path, *, other: bool) -> Stock:
    """Publish the generations into `folder`/registry. `other`: whether there is a third."""
    pairs = [(snapshot, checkpoint), (snapshot, _disturbed(checkpoint, folder / "second"))]
    if other:
        pairs.append(_other_shop(folder / "other"))
    registry = Registry(folder / "registry")
    versions = [publish(registry, *pair, by=BY).record.version for pair in pairs]
    promotion.promote(registry, versions[0], by=BY)
    return Stock(
        registry.path,
        versions[0],
        versions[1],
        versions[2] if other else None,
        dict(_sids_of(path) for path in {pair[0] for pair in pairs}),
    )


@dataclass(slots=True)
class Judge:
    """Says what is wrong with answers. `calm`: by generation and query the hits that were found
    while nothing was swapped."""

    stock: Stock
    calm: dict[tuple[str, str], dict[str, Sequence[Answer]]] = field(
        default_factory=dict[tuple[str, str], dict[str, Sequence[Answer]]]
    )

    def learn(self, answer: Answer) -> None:
        """Keep what a calm server found."""
        self.calm.setdefault(_pair(answer), {})[answer["query"]] = answer["hits"]

    def fault(self, answer: Answer) -> str | None:
        """Why an answer is not of one generation; None for one that is."""
        model, index = _pair(answer)
        known = self.calm.get((model, index))
        if known is None:
            return f"no generation has model {model} with index {index}"
        sids = self.stock.sids[index]
        for hit in answer["hits"]:
            if sids.get(hit["item_id"]) != hit["sid"]:
                return f"{hit['item_id']} is not under {hit['sid']} in index {index}"
        if answer["degraded"]:
            return None
        return _difference(answer["hits"], known[answer["query"]])


def _pair(answer: Answer) -> tuple[str, str]:
    """Checkpoint and snapshot version of an answer; changes of the catalogue are left out."""
    return answer["model_version"], answer["index_version"].split("+")[0]


def _difference(hits: Sequence[Answer], calm: Sequence[Answer]) -> str | None:
    if len(hits) != len(calm):
        return f"{len(hits)} hits, {len(calm)} on a calm server"
    for place, (hit, before) in enumerate(zip(hits, calm, strict=True), 1):
        near = abs(hit["score"] - before["score"]) <= SAME_SCORE * max(1.0, abs(before["score"]))
        if hit["item_id"] != before["item_id"] and not near:
            return f"hit {place} is {hit['item_id']}, {before['item_id']} on a calm server"
    return None


def _sids_of(path: Path) -> tuple[str, dict[str, str]]:
    snapshot = Snapshot.open(path, verify=False)
    rows = np.arange(len(snapshot.items))
    codes = snapshot.trie.codes_of_leaves(snapshot.postings.leaf_of_row[rows])
    ids = snapshot.items.item_ids(rows)
    return snapshot.version, {
        item: snapshot.layout.format(sid) for item, sid in zip(ids, codes.tolist(), strict=True)
    }


def _disturbed(checkpoint: Path, path: Path) -> Path:
    """The checkpoint with noise in its weights, so that it finds something else."""
    opened = Checkpoint.open(checkpoint)
    model = opened.load_model()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters():
            noise = torch.randn(tensor.shape, generator=random, dtype=tensor.dtype)
            tensor += NOISE * float(tensor.std()) * noise
    save_checkpoint(path, model, opened.tokenizer, opened.settings, {"disturbed": NOISE})
    return path


def _other_shop(folder: Path) -> tuple[Path, Path]:
    shop, dataset, snapshot = folder / "shop", folder / "dataset", folder / "snapshot"
    generate(
        shop,
        seed=OTHER_SEED,
        n_items=OTHER_ITEMS,
        n_users=OTHER_USERS,
        n_sessions=OTHER_SESSIONS,
    )
    import_dataset("jsonl", shop, dataset)
    settings = BuildSettings(encoder_steps=OTHER_ENCODER_STEPS)
    build_snapshot(Dataset.open(dataset), snapshot, settings)
    run_sft(
        SftRun(
            Dataset.open(dataset),
            Snapshot.open(snapshot),
            folder / "checkpoint",
            settings=SftSettings(max_minutes=OTHER_MINUTES),
        )
    )
    return snapshot, folder / "checkpoint"
