"""Generations: a snapshot and a checkpoint that belong together, pinned while requests use them.

A request pins one generation once and reads everything from it, the engine's weights too, so no
answer mixes two. A promoted generation takes over for new requests; the one before it is drained
when its last pin is released. Beside the live one there may be a challenger, which answers its arm
of an experiment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import orjson
import torch

from decoding.native.product import Precision, computing_type
from decoding.native.runner import Runner, make_runner
from decoding.weights import DecoderWeights
from index import artifact
from index.errors import ArtifactError, ConfigError
from index.live.catalogue import LiveCatalogue, LiveSettings
from index.live.nursery import Nursery
from index.live.view import CatalogueView
from index.rescoring import RescoringWeights
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.personal import PersonalRanking
from models.query import QueryPrompts
from models.registry.pairing import check_parts
from server.catalogue import open_catalogue, settled_view
from server.experiment.assignment import Experiment
from server.runners import HeldByEngine, Runners
from server.settings import ENVIRONMENT_PREFIX, Settings

if TYPE_CHECKING:
    # Needs vLLM, which has an environment of its own.
    from decoding.vllm.engine import VllmGeneration

CHAMPION, CHALLENGER = "champion", "challenger"
"""The arms of a canary."""
IF_HELD = (
    "A server that only reads may serve it beside that one: catalogue_changes=false "
    f"({ENVIRONMENT_PREFIX}CATALOGUE_CHANGES)"
)


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
    personal: PersonalRanking | None = None
    """What a history adds to the ranking; None where the checkpoint has no weights for it."""

    @classmethod
    def open(
        cls,
        snapshot: Path,
        checkpoint: Path,
        *,
        verify: bool = True,
        directory: Path | None = None,
        changes: LiveSettings | None = None,
        nursery: Nursery | None = None,
    ) -> Generation:
        """Open both and check that they fit. The catalogue takes changes where `changes` is given,
        with a writer from `nursery`; else it is what snapshot and `directory` (SNAPSHOT.live unless
        given) hold now.

        Raises ArtifactError when one is missing or damaged, when layout or codec differ, or when
        another process has the live directory open for changes.
        """
        if changes is None:
            view = settled_view(snapshot, directory, verify=verify)
            return cls.of(view, Checkpoint.open(checkpoint, verify=verify))
        catalogue = open_catalogue(
            snapshot, directory, changes, verify=verify, nursery=nursery, if_held=IF_HELD
        )
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
        try:
            personal = PersonalRanking.of(checkpoint.settings.rescoring, snapshot)
        except ConfigError as error:
            raise ArtifactError(f"checkpoint {checkpoint.path}: {error}") from None
        prompts = QueryPrompts.of(snapshot.codec, checkpoint)
        return cls(source, checkpoint, prompts, weights, personal=personal)

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
    def nursery(self) -> Nursery | None:
        """Where its catalogue's writer comes from, if it has one."""
        return None if self.catalogue is None else self.catalogue.nursery

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

    def drop_weights(self) -> None:
        """Let go of the weights; no search uses them any more, none may until `take_weights`."""
        assert isinstance(self.runners, Runners)
        self.runners.drop()

    def take_weights(self, other: Generation) -> None:
        """Have the weights of another that was opened from the same checkpoint."""
        assert isinstance(self.runners, Runners) and isinstance(other.runners, Runners)
        self.runners.take(other.runners)
        self.stand_alone()
        if self.catalogue is not None:
            self.runners.rebase(self.catalogue.view)

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
    def parts(self) -> tuple[str, str]:
        """Digests of checkpoint and snapshot: what it is, whatever changed in its catalogue."""
        return self.model_version, self.snapshot_version

    @property
    def simulated(self) -> bool:
        """Whether catalogue or behaviour are made up."""
        return bool(self.view.manifest.get("simulated")) or self.checkpoint.settings.simulated


class Assigned(NamedTuple):
    """What answers one request. `experiment` and `arm`: None where there is no experiment."""

    generation: Generation
    experiment: str | None = None
    arm: str | None = None


class Generations:
    """The live generation, a challenger where there is one, and their pins. Used on one event
    loop."""

    def __init__(self, live: Generation) -> None:
        self._live = _Pinned(live)
        self._challenger: _Pinned | None = None
        self.experiment: Experiment | None = None
        """Whose arm CHALLENGER the challenger answers; None: it answers nobody."""

    @property
    def live(self) -> Generation:
        """What new requests get."""
        return self._live.generation

    @property
    def challenger(self) -> Generation | None:
        """What is beside the live one."""
        return None if self._challenger is None else self._challenger.generation

    @contextmanager
    def pin(self) -> Generator[Generation, None, None]:
        """The live generation, kept until the block ends."""
        with self._live.held() as generation:
            yield generation

    @contextmanager
    def assigned(self, unit: str) -> Generator[Assigned, None, None]:
        """The generation of a unit's arm, kept until the block ends: the live one, unless an
        experiment gives the unit to the challenger."""
        pinned, experiment, arm = self._live, self.experiment, None
        if experiment is not None:
            given = experiment.arm_of(unit)
            arm = None if given is None else given.name
            if arm == CHALLENGER and self._challenger is not None:
                pinned = self._challenger
        with pinned.held() as generation:
            named = None if experiment is None or arm is None else experiment.name
            yield Assigned(generation, named, arm)

    def promote(self, generation: Generation) -> asyncio.Event:
        """Make another generation live; the challenger's experiment ends if it is that. The event
        is set when nobody uses the old one any more."""
        pinned, challenger = _Pinned(generation), self._challenger
        if challenger is not None and challenger.generation.runners is generation.runners:
            # Searches that run on it already hold it as they will hold the live one.
            pinned, challenger.generation = challenger, generation
            self._challenger = self.experiment = None
        old, self._live = self._live, pinned
        old.retire()
        return old.drained

    def challenge(self, generation: Generation) -> None:
        """Have a challenger, which answers nobody yet. There must be none."""
        assert self._challenger is None
        self._challenger = _Pinned(generation)

    def unchallenge(self) -> asyncio.Event:
        """Have none any more. The event is set when nobody uses it any more."""
        assert self._challenger is not None
        old, self._challenger, self.experiment = self._challenger, None, None
        old.retire()
        return old.drained


class _Pinned:
    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.pins = 0
        self.retired = False
        self.drained = asyncio.Event()

    @contextmanager
    def held(self) -> Generator[Generation, None, None]:
        self.pins += 1
        try:
            yield self.generation
        finally:
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
