"""Three pairs: two checkpoints of one snapshot, and one of another codec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from index.snapshot import Snapshot
from models.checkpoint import Checkpoint, save_checkpoint
from models.registry.publication import publish
from models.registry.registry import Registry


class Sources(NamedTuple):
    """Directories. `second` fits `snapshot` too; `foreign` fits `other` only."""

    snapshot: Path
    first: Path
    second: Path
    other: Path
    foreign: Path


@pytest.fixture(scope="session")
def sources(
    tiny_pair: tuple[Path, Path], other_snapshot: Path, tmp_path_factory: pytest.TempPathFactory
) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    opened = Checkpoint.open(tiny_pair[1])
    model, settings = opened.load_model(), opened.settings
    second, foreign = folder / "second", folder / "foreign"
    changed = replace(settings, level_prior_beta=1.0, stage="align", parents=("p1",))
    save_checkpoint(second, model, opened.tokenizer, changed, {"recall@10": 0.5})
    codec_id = Snapshot.open(other_snapshot).codec.id
    save_checkpoint(foreign, model, opened.tokenizer, replace(settings, codec_id=codec_id), {})
    return Sources(*tiny_pair, second, other_snapshot, foreign)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", lock_wait_s=5)


@pytest.fixture
def published(registry: Registry, sources: Sources) -> Callable[[], tuple[str, str]]:
    """`published()` → versions of two generations that share their snapshot."""

    def both() -> tuple[str, str]:
        first = publish(registry, sources.snapshot, sources.first)
        second = publish(registry, sources.snapshot, sources.second)
        return first.record.version, second.record.version

    return both
