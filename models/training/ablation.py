"""An ablation in a work directory: train every node once for each seed, measure every row.

    WORK/keywords.parquet                       the training keywords, made once
    WORK/seed-1/NODE/node.json                  what the node was trained from: its fingerprint
    WORK/seed-1/NODE/checkpoint[.state]         the weights, or where their training stands
    WORK/seed-1/NODE/student.json, keywords.json  what was measured, without and with keywords

Seed 1 goes through all rows first, then seed 2. Everything is published by one rename and found
again: a run that was killed, or whose time is up, goes on where it stood. What was trained from
other data or settings is refused. Seeds decide initial weights, order of the data, dropout and
rollouts; dataset, snapshot, keywords and the measured searches are the same for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson

from index import artifact
from index.dataset import Dataset
from index.errors import ArtifactError, ConfigError
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.training import loop
from models.training.ablation_measurement import KeywordsOf, MeasuredVisits, measure
from models.training.ablation_recipe import Node, Recipe, Row
from models.training.align import AlignSettings
from models.training.distill import DistillSettings
from models.training.keyword_table import KeywordTable
from models.training.run_align import AlignRun, run_align
from models.training.run_distill import DistillRun, run_distill
from models.training.run_sft import SftRun, run_sft, silent
from models.training.sft import SftSettings

Announce = Callable[[str], None]
Report = Callable[[loop.Progress], None]
Clock = Callable[[], float]
_S_PER_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is compared, on what, and where it is kept. `seeds`: 1 … n."""

    dataset: Dataset
    snapshot: Snapshot
    work: Path
    recipe: Recipe
    keywords: KeywordTable
    seeds: int = 3

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds is {self.seeds}, it must be at least 1")

    def folder(self, node: Node, seed: int) -> Path:
        return self.work / f"seed-{seed}" / node.name

    def result_path(self, row: Row, seed: int) -> Path:
        name = "keywords.json" if row.with_keywords else "student.json"
        return self.folder(self.recipe.node(row.node), seed) / name

    def fingerprint(self, node: Node, seed: int) -> str:
        """Digest of everything that decides the node's weights."""
        parent = self.fingerprint(self.recipe.node(node.parent), seed) if node.parent else ""
        keywords = self.keywords.version if node.keywords else ""
        prompt = orjson.dumps(node.prompt.to_json()).decode()
        settings = self.recipe.settings_of(node, seed)
        return loop.fingerprint(settings, node.stage, parent, keywords, prompt, self._data())

    def measured(self, row: Row, seed: int, visits: MeasuredVisits) -> dict[str, Any] | None:
        """What was measured for a row, None where nothing was. Raises ArtifactError when it is
        that of other data or settings."""
        path = self.result_path(row, seed)
        found = _read(path)
        if found is None:
            return None
        node = self.recipe.node(row.node)
        expected = {"fingerprint": self.fingerprint(node, seed), "visits": visits.version}
        if any(found.get(name) != value for name, value in expected.items()):
            raise _other(path)
        return found

    def _data(self) -> str:
        return f"{self.dataset.version}/{self.snapshot.version}"


@dataclass(slots=True)
class _Budget:
    """Minutes of one invocation; None: as long as it takes."""

    minutes: float | None
    clock: Clock
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def spent(self) -> bool:
        if self.minutes is None:
            return False
        return self.clock() - self.started >= self.minutes * _S_PER_MINUTE


class _TimeIsUp(Exception):
    """Leaves a training whose state is saved; it goes on from there."""


def run_ablation(
    ablation: Ablation,
    visits: MeasuredVisits,
    keywords_of: KeywordsOf,
    *,
    only: tuple[str, ...] = (),
    max_minutes: float | None = None,
    report: Report | None = None,
    announce: Announce | None = None,
    clock: Clock = time.monotonic,
) -> bool:
    """Train and measure what is missing of the rows `only`, of all for none; whether all of them
    are there at the end. `report` hears each training step, `announce` what begins.

    Ends after about `max_minutes` of `clock` (seconds); a training that is cut off goes on from its
    last save.
    """
    budget, say = _Budget(max_minutes, clock), announce or silent
    rows = ablation.recipe.rows_named(only)

    def watch(step: loop.Progress) -> None:
        if report is not None:
            report(step)
        if budget.spent:
            raise _TimeIsUp

    try:
        for seed in range(1, ablation.seeds + 1):
            for row in rows:
                if ablation.measured(row, seed, visits) is not None:
                    continue
                checkpoint: Checkpoint | None = None
                for node in ablation.recipe.ancestry(row.node):
                    checkpoint = _trained(ablation, node, seed, checkpoint, watch, say, budget)
                assert checkpoint is not None
                if budget.spent:
                    raise _TimeIsUp
                say(f"seed {seed}, {row.name}: measuring")
                _measure(ablation, row, seed, checkpoint, visits, keywords_of)
    except _TimeIsUp:
        return False
    return True


def _trained(
    ablation: Ablation,
    node: Node,
    seed: int,
    initial: Checkpoint | None,
    report: Report,
    announce: Announce,
    budget: _Budget,
) -> Checkpoint:
    """A node's checkpoint, trained unless it is there."""
    folder, fingerprint = ablation.folder(node, seed), ablation.fingerprint(node, seed)
    target, facts = folder / "checkpoint", folder / "node.json"
    found = _read(facts)
    if found is not None and found.get("fingerprint") != fingerprint:
        raise _other(folder)
    if found is not None and target.exists():
        return Checkpoint.open(target)
    if budget.spent:
        raise _TimeIsUp
    folder.mkdir(parents=True, exist_ok=True)
    artifact.write_file(facts, _json({"fingerprint": fingerprint, "node": node.name, "seed": seed}))
    announce(f"seed {seed}, {node.name}: {node.stage}")
    return _train(ablation, node, seed, target, initial, report)


def _train(
    ablation: Ablation,
    node: Node,
    seed: int,
    target: Path,
    initial: Checkpoint | None,
    report: Report,
) -> Checkpoint:
    """Train one node, or go on with it."""
    dataset, snapshot = ablation.dataset, ablation.snapshot
    settings = ablation.recipe.settings_of(node, seed)
    init = initial.path if initial is not None else None
    if isinstance(settings, SftSettings):
        keywords = ablation.keywords if node.keywords else None
        run = SftRun(dataset, snapshot, target, init, keywords, settings, node.prompt)
        return run_sft(run, report)
    assert init is not None
    if isinstance(settings, DistillSettings):
        distillation = DistillRun(dataset, snapshot, target, init, ablation.keywords, settings)
        return run_distill(distillation, report)
    assert isinstance(settings, AlignSettings)
    return run_align(AlignRun(dataset, snapshot, target, init, settings), report)


def _measure(
    ablation: Ablation,
    row: Row,
    seed: int,
    checkpoint: Checkpoint,
    visits: MeasuredVisits,
    keywords_of: KeywordsOf,
) -> None:
    found = measure(
        ablation.dataset,
        ablation.snapshot,
        checkpoint,
        visits,
        ablation.recipe.sizes.beam_width,
        keywords_of if row.with_keywords else None,
    )
    node = ablation.recipe.node(row.node)
    facts: Mapping[str, Any] = {
        "fingerprint": ablation.fingerprint(node, seed),
        "model_version": checkpoint.version,
        "training": checkpoint.metrics,
        **found,
    }
    artifact.write_file(ablation.result_path(row, seed), _json(facts))


def _json(facts: Mapping[str, Any]) -> bytes:
    return orjson.dumps(facts)


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object of this directory, None where there is none. Raises ArtifactError else."""
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, orjson.JSONDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; remove it") from None
    return cast(dict[str, Any], found)


def _other(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path} is of an ablation with other data or settings; choose another work directory, or "
        "remove what is there"
    )
