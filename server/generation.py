"""Generations: a snapshot and a checkpoint that belong together, pinned while requests use them.

A request pins the live generation once and reads everything from it, the engine's weights too, so
no answer mixes two. A promoted generation takes over for new requests; the one before it is drained
when its last pin is released.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import orjson
import torch

from decoding.native.runner import Runner
from decoding.weights import DecoderWeights
from index import artifact
from index.errors import ArtifactError, ConfigError
from index.rescoring import RescoringWeights
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.query import QueryPrompts
from server.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """An opened pair. Immutable; safe to share between threads."""

    snapshot: Snapshot
    checkpoint: Checkpoint
    prompts: QueryPrompts
    weights: RescoringWeights
    runner: Runner | None = None
    """What the native engine searches it with; None leaves that to the engine."""

    @classmethod
    def open(cls, snapshot: Path, checkpoint: Path, *, verify: bool = True) -> Generation:
        """Open both and check that they fit.

        Raises ArtifactError when one is missing or damaged, or when layout or codec differ.
        """
        return cls.of(
            Snapshot.open(snapshot, verify=verify), Checkpoint.open(checkpoint, verify=verify)
        )

    @classmethod
    def of(cls, snapshot: Snapshot, checkpoint: Checkpoint) -> Generation:
        """Join opened parts. Raises ArtifactError when they do not fit."""
        layout, settings = snapshot.layout, checkpoint.settings
        if settings.level_sizes != layout.level_sizes:
            raise ArtifactError(
                f"checkpoint {checkpoint.path} has SID levels {settings.level_sizes}, snapshot "
                f"{snapshot.path} has {layout.level_sizes}; use a pair built together"
            )
        if settings.codec_id != snapshot.codec.id:
            raise ArtifactError(
                f"checkpoint {checkpoint.path} was trained for codec "
                f"{settings.codec_id or '(none named)'}, snapshot {snapshot.path} has "
                f"{snapshot.codec.id}; train on this snapshot or serve the one it was trained on"
            )
        try:
            weights = (
                RescoringWeights.from_json(settings.rescoring)
                if settings.rescoring
                else RescoringWeights()
            )
        except ConfigError as error:
            raise ArtifactError(f"checkpoint {checkpoint.path}: {error}") from None
        return cls(snapshot, checkpoint, QueryPrompts.of(snapshot.codec, checkpoint), weights)

    def with_runner(self, device: str = "cpu") -> Generation:
        """The same with the checkpoint's weights loaded on `device`.

        Raises ArtifactError for damaged weights, ConfigError for a device that is not there.
        """
        if device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(f"engine_device {device!r} is not there; use cpu")
        weights = DecoderWeights.from_directory(self.checkpoint.path, device=device)
        return replace(self, runner=Runner(weights, self.snapshot.trie))

    @property
    def model_version(self) -> str:
        """The checkpoint's digest."""
        return self.checkpoint.version

    @property
    def index_version(self) -> str:
        """The snapshot's digest."""
        return self.snapshot.version

    @property
    def simulated(self) -> bool:
        """Whether catalogue or behaviour are made up."""
        return bool(self.snapshot.manifest.get("simulated")) or self.checkpoint.settings.simulated


class Generations:
    """The live generation and its pins. Used on one event loop."""

    def __init__(self, live: Generation) -> None:
        self._live = _Pinned(live)

    @property
    def live(self) -> Generation:
        """What new requests get."""
        return self._live.generation

    @contextmanager
    def pin(self) -> Generator[Generation, None, None]:
        """The live generation, kept until the block ends."""
        pinned = self._live
        pinned.pins += 1
        try:
            yield pinned.generation
        finally:
            pinned.release()

    def promote(self, generation: Generation) -> asyncio.Event:
        """Make another generation live. The event is set when nobody uses the old one any more."""
        old, self._live = self._live, _Pinned(generation)
        old.retire()
        return old.drained


class _Pinned:
    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.pins = 0
        self.retired = False
        self.drained = asyncio.Event()

    def release(self) -> None:
        self.pins -= 1
        self._settle()

    def retire(self) -> None:
        self.retired = True
        self._settle()

    def _settle(self) -> None:
        if self.retired and self.pins == 0:
            self.drained.set()


def chosen_paths(settings: Settings) -> tuple[Path, Path]:
    """Snapshot and checkpoint directories: as given, else as the champion file says.

    Raises ConfigError when only one is given, or neither and there is no champion.
    """
    given = (settings.snapshot, settings.checkpoint)
    if settings.snapshot is not None and settings.checkpoint is not None:
        return settings.snapshot, settings.checkpoint
    if given != (None, None):
        missing = "--checkpoint" if settings.checkpoint is None else "--snapshot"
        raise ConfigError(f"{missing} is missing: give both --snapshot and --checkpoint or neither")
    return read_champion(settings.champion)


def read_champion(path: Path) -> tuple[Path, Path]:
    """The pair that a champion file names; relative paths start at the file's folder."""
    try:
        raw = cast(object, orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no champion at {path}: make one with `onesearch demo`, or give "
            "--snapshot and --checkpoint"
        ) from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigError(f"champion {path} cannot be read: {error}") from None
    names = cast(dict[str, object], raw) if isinstance(raw, dict) else {}
    snapshot, checkpoint = names.get("snapshot"), names.get("checkpoint")
    if not isinstance(snapshot, str) or not isinstance(checkpoint, str):
        raise ConfigError(f'champion {path} must be {{"snapshot": PATH, "checkpoint": PATH}}')
    return path.parent / snapshot, path.parent / checkpoint


def write_champion(path: Path, snapshot: Path, checkpoint: Path) -> None:
    """Name the pair that `onesearch serve` takes by default; written atomically."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {"snapshot": str(snapshot.absolute()), "checkpoint": str(checkpoint.absolute())}
    for name, directory in named.items():
        if Path(directory).is_relative_to(path.parent):
            named[name] = str(Path(directory).relative_to(path.parent))
    artifact.write_file(path, orjson.dumps(named, option=orjson.OPT_INDENT_2))
