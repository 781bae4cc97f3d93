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
from typing import TYPE_CHECKING, cast

import orjson
import torch

from decoding.native.product import Precision, computing_type
from decoding.native.runner import Runner, make_runner
from decoding.weights import DecoderWeights
from index import artifact
from index.errors import ConfigError
from index.live.catalogue import LiveCatalogue, LiveSettings
from index.live.view import CatalogueView
from index.rescoring import RescoringWeights
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.query import QueryPrompts
from models.registry.pairing import check_parts
from server.catalogue import open_catalogue, settled_view
from server.settings import ENVIRONMENT_PREFIX, Settings

if TYPE_CHECKING:
    # Needs vLLM, which has an environment of its own.
    from decoding.vllm.engine import VllmGeneration

IF_HELD = (
    "A server that only reads may serve it beside that one: catalogue_changes=false "
    f"({ENVIRONMENT_PREFIX}CATALOGUE_CHANGES)"
)


class Runners:
    """What the engine searches a generation's weights with.

    On a CPU one runner takes any trie. On a GPU the trie lies beside the weights, so each base trie
    that a merge leads to gets a runner; the one before stays for searches that still use it.
    """

    def __init__(self, first: Runner) -> None:
        self._kept = (first,)

    @property
    def newest(self) -> Runner:
        return self._kept[0]

    def of(self, view: CatalogueView) -> Runner:
        """The runner for a view's base trie."""
        fitting = (runner for runner in self._kept if runner.trie is view.base.trie)
        return next(fitting, self.newest)

    def rebase(self, view: CatalogueView) -> None:
        """Be ready for the views that follow a merge. In the merging thread, before they come."""
        newest = self.newest
        if newest.weights.device.type != "cpu" and newest.trie is not view.base.trie:
            runner = make_runner(newest.weights, view.base.trie)
            runner.warm_up()
            self._kept = (runner, newest)


class HeldByEngine:
    """In the place of `Runners` where the engine holds the weights itself: what it names the
    generation by, whatever becomes of the catalogue."""

    def __init__(self, name: VllmGeneration) -> None:
        self.newest = name

    def of(self, view: CatalogueView) -> VllmGeneration:
        """The same for all views."""
        return self.newest

    def rebase(self, view: CatalogueView) -> None:
        """Tries travel with searches: nothing to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """An opened pair. Safe to share between threads; only its catalogue changes.

    `source`: the snapshot's catalogue, or one view of it where it takes no changes.
    """

    source: LiveCatalogue | CatalogueView
    checkpoint: Checkpoint
    prompts: QueryPrompts
    weights: RescoringWeights
    runners: Runners | HeldByEngine | None = None
    """What the engine searches it with; None where nobody searches it yet."""

    @classmethod
    def open(
        cls,
        snapshot: Path,
        checkpoint: Path,
        *,
        verify: bool = True,
        directory: Path | None = None,
        changes: LiveSettings | None = None,
    ) -> Generation:
        """Open both and check that they fit. The catalogue takes changes where `changes` is given;
        else it is what snapshot and `directory` (SNAPSHOT.live unless given) hold now.

        Raises ArtifactError when one is missing or damaged, when layout or codec differ, or when
        another process has the live directory open for changes.
        """
        if changes is None:
            view = settled_view(snapshot, directory, verify=verify)
            return cls.of(view, Checkpoint.open(checkpoint, verify=verify))
        catalogue = open_catalogue(snapshot, directory, changes, verify=verify, if_held=IF_HELD)
        try:
            return cls.of(catalogue, Checkpoint.open(checkpoint, verify=verify))
        except BaseException:
            catalogue.close()
            raise

    @classmethod
    def of(
        cls, source: LiveCatalogue | CatalogueView | Snapshot, checkpoint: Checkpoint
    ) -> Generation:
        """Join opened parts. Raises ArtifactError when they do not fit."""
        if isinstance(source, Snapshot):
            source = CatalogueView.of(source)
        snapshot = source.view.base if isinstance(source, LiveCatalogue) else source.base
        weights = check_parts(snapshot, checkpoint)
        return cls(source, checkpoint, QueryPrompts.of(snapshot.codec, checkpoint), weights)

    def with_runner(self, device: str = "cpu", precision: Precision = "float32") -> Generation:
        """The same with the checkpoint's weights loaded on `device`. "auto" is bfloat16 on a GPU,
        what `computing_type` measures on a CPU.

        Raises ArtifactError for damaged weights, ConfigError for a device that is not there.
        """
        if device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(f"engine_device {device!r} is not there; use cpu")
        if device != "cpu" and precision == "auto":
            precision = "bfloat16"
        dtype = computing_type(precision, self.checkpoint.config.hidden_size)
        weights = DecoderWeights.from_directory(self.checkpoint.path, dtype=dtype, device=device)
        runners = Runners(make_runner(weights, self.view.base.trie))
        if self.catalogue is not None:
            self.catalogue.on_merge = runners.rebase
        return replace(self, runners=runners)

    def named(self, name: VllmGeneration) -> Generation:
        """The same for an engine that holds the weights itself and names it so."""
        return replace(self, runners=HeldByEngine(name))

    @property
    def catalogue(self) -> LiveCatalogue | None:
        """What takes changes, if anything does."""
        return self.source if isinstance(self.source, LiveCatalogue) else None

    @property
    def view(self) -> CatalogueView:
        """The catalogue as it is now. A search takes it once."""
        return self.source.view if isinstance(self.source, LiveCatalogue) else self.source

    @property
    def runner(self) -> Runner | VllmGeneration | None:
        """What searches the catalogue as it is now."""
        return None if self.runners is None else self.runners.newest

    def runner_of(self, view: CatalogueView) -> Runner | VllmGeneration | None:
        """What searches one of the catalogue's views."""
        return None if self.runners is None else self.runners.of(view)

    def succeeding(self, old: Generation) -> Generation:
        """The same, ready to take over from the live generation: with its catalogue, if both are of
        one snapshot, so that no change is lost. May warm up a runner."""
        catalogue = old.catalogue
        if catalogue is None or self.snapshot_version != old.snapshot_version:
            return self
        runners = [one.runners for one in (self, old) if one.runners is not None]

        def rebase(view: CatalogueView) -> None:
            for one in runners:
                one.rebase(view)

        catalogue.on_merge = rebase
        if self.runners is not None:
            self.runners.rebase(catalogue.view)
        return replace(self, source=catalogue)

    def beside(self, checkpoint: Checkpoint) -> Generation:
        """Another checkpoint with the catalogue as it is now; `succeeding` gives it the changes
        since. Raises ArtifactError when they do not fit."""
        return Generation.of(self.view, checkpoint)

    def stand_alone(self) -> None:
        """The generation before this one is gone: merges need not prepare for it any more."""
        if self.catalogue is not None and self.runners is not None:
            self.catalogue.on_merge = self.runners.rebase

    def close(self) -> None:
        """Let go of the live directory; changes that wait are finished first."""
        if self.catalogue is not None:
            self.catalogue.close()

    @property
    def model_version(self) -> str:
        """The checkpoint's digest."""
        return self.checkpoint.version

    @property
    def snapshot_version(self) -> str:
        """The snapshot's digest: encoder, codec and attributes."""
        return self.view.origin_version

    def index_version_at(self, sequence: int) -> str:
        """Name of the catalogue after a change, as `CatalogueView.version` has it."""
        return f"{self.snapshot_version}+{sequence}" if sequence else self.snapshot_version

    @property
    def simulated(self) -> bool:
        """Whether catalogue or behaviour are made up."""
        return bool(self.view.manifest.get("simulated")) or self.checkpoint.settings.simulated


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
