"""The registry: every published generation, and which one is champion.

```
registry.json                        what this folder is
snapshots/VERSION/ checkpoints/…     the parts, each stored once        models/registry/store.py
generations/VERSION/                 pairs of them                      models/registry/record.py
aliases/NUMBER.json                  champion, challenger, previous     models/registry/aliases.py
leases/…json                         what processes use                 models/registry/leases.py
trials/NUMBER.json                   what champions are judged by       models/registry/trials.py
events.jsonl                         who, what, when, why               models/registry/events.py
work/  lock                          unfinished work; one writer at a time
```
Invariants. What is published never changes. A generation is there when both its parts are, whole
and fitting. All aliases change in one rename, so a process killed anywhere leaves the champion as
it was or as it was to be. Readers take no lock. Nothing that is named or pinned is removed.

Here is what reads and pins; `publication.py`, `promotion.py` and `retention.py` make the changes.
Errors are ArtifactError with file and reason; a full disk is one too, and leaves no half version.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson

from index.errors import ArtifactError, ConfigError
from models.registry.aliases import ALIASES, Alias, Aliases, AliasHistory
from models.registry.durable import write_durably
from models.registry.events import Event, EventLog
from models.registry.leases import LEASE_TTL_S, Lease, Leases
from models.registry.lock import LOCK_WAIT_S, locked
from models.registry.process import whoami
from models.registry.record import GenerationRecord, Pairing, read_record
from models.registry.store import Store
from models.registry.trials import Trials

if TYPE_CHECKING:
    from models.registry.pairing import Fitting

DEFAULT_REGISTRY = Path("var/registry")
FORMAT_VERSION = 1
_MARKER = "registry.json"
_MIN_PREFIX = 4


@dataclass(frozen=True, slots=True)
class Choice:
    """What to serve. `problems`: why it is not the champion, or what else was found on the way."""

    record: GenerationRecord
    snapshot: Path
    checkpoint: Path
    alias: Alias
    revision: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Provenance:
    """Whose decision a change is, and why; both go into the history."""

    who: str = ""
    why: str = ""

    def named(self) -> str:
        """Who, this process's user unless given."""
        return self.who or whoami()


class Registry:
    """A registry folder. Safe to use from several threads, processes and machines."""

    def __init__(self, path: Path = DEFAULT_REGISTRY, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        """Touches nothing; `publish` makes the folder when it is not there."""
        self.path = Path(path)
        self._lock_path, self._lock_wait_s = self.path / "lock", lock_wait_s
        self.work = self.path / "work"
        self.snapshots = Store(self.path / "snapshots", "snapshot", self.work)
        self.checkpoints = Store(self.path / "checkpoints", "checkpoint", self.work)
        self.generations = self.path / "generations"
        self.alias_history = AliasHistory(self.path / "aliases")
        self.lease_files = Leases(self.path / "leases")
        self.trials = Trials(self.path / "trials")
        self.log = EventLog(self.path / "events.jsonl")

    # Reading

    @property
    def exists(self) -> bool:
        """Whether anything was ever published here."""
        return (self.path / _MARKER).is_file()

    def aliases(self) -> Aliases:
        """Who is champion, challenger, previous now: one small file, so it may be asked often.

        Raises ArtifactError when no state can be read.
        """
        return self.alias_history.current()

    def history(self) -> list[Aliases]:
        """The changes of aliases that are kept, oldest first."""
        return self.alias_history.history()

    def events(self) -> list[Event]:
        """What happened, oldest first."""
        return self.log.read()

    def leases(self) -> list[Lease]:
        """What is pinned."""
        return self.lease_files.holding()

    def records(self) -> tuple[list[GenerationRecord], dict[str, str]]:
        """All generations, newest first, and of those that cannot be read, why."""
        records: list[GenerationRecord] = []
        damaged: dict[str, str] = {}
        for path in sorted(self.generations.glob("*")):
            if path.name.startswith("."):
                continue
            try:
                records.append(read_record(path))
            except ArtifactError as error:
                if path.exists():
                    damaged[path.name] = str(error)
        return sorted(records, key=lambda one: (-one.created, one.version)), damaged

    def record(self, version: str) -> GenerationRecord:
        """One generation. Raises ArtifactError when it is not there or damaged."""
        return read_record(self.generations / version)

    def resolve(self, name: str) -> str:
        """The version that an alias, a version or the unique start of one names.

        Raises ConfigError that lists what there is.
        """
        if name in ALIASES:
            version = self.aliases().named().get(name)
            if version is None:
                raise ConfigError(f"{self.path} has no {name}")
            return version
        known = [path.name for path in self.generations.glob("*") if path.name[0] != "."]
        found = [one for one in known if one == name]
        if not found and len(name) >= _MIN_PREFIX:
            found = [one for one in known if one.startswith(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f"{name!r} may be any of {', '.join(sorted(found))}")
        if not self.exists:
            raise ConfigError(f"there is no registry at {self.path}")
        there = ", ".join(sorted(known)) or "none"
        raise ConfigError(f"there is no generation {name!r} in {self.path}; there are: {there}")

    def paths(self, record: GenerationRecord) -> tuple[Path, Path]:
        """The directories of snapshot and checkpoint."""
        pairing = record.pairing
        return self.snapshots.path(pairing.snapshot), self.checkpoints.path(pairing.checkpoint)

    def verify(self, version: str, *, hashes: bool = True, fit: bool = True) -> GenerationRecord:
        """Check a generation: its record, every file of its parts, and that they fit (which opens
        them). Raises ArtifactError naming the first file that is wrong, and how."""
        record = self.record(version)
        problems = self.problems(version, hashes=hashes, fit=fit)
        if problems:
            raise ArtifactError(problems[0])
        return record

    def problems(self, version: str, *, hashes: bool = True, fit: bool = True) -> list[str]:
        """Everything that is wrong with a generation, a line each with file and reason."""
        try:
            record = self.record(version)
        except ArtifactError as error:
            return [str(error)]
        found: list[str] = []
        pairing = record.pairing
        for store, part in (
            (self.snapshots, pairing.snapshot),
            (self.checkpoints, pairing.checkpoint),
        ):
            try:
                store.check(part, hashes=hashes)
            except ArtifactError as error:
                found.append(str(error))
        if found or not fit:
            return found
        try:
            check_fit(*self.paths(record), pairing=pairing)
        except ArtifactError as error:
            found.append(str(error))
        return found

    def problems_of_aliases(self) -> list[str]:
        """Damaged states of aliases, and aliases that name what is not there."""
        found = self.alias_history.damaged()
        try:
            named = self.aliases().named()
        except ArtifactError:
            return found
        for alias, version in named.items():
            if not (self.generations / version).is_dir():
                found.append(f"{alias} names generation {version}, which is not in {self.path}")
        return found

    def choose(self, *, verify: bool = True) -> Choice:
        """The champion, or `previous` when the champion is damaged. With `verify` every file of it
        is read.

        Raises ConfigError when there is no champion, ArtifactError when neither is whole.
        """
        if not self.exists:
            raise ConfigError(
                f"there is no registry at {self.path}; make one with "
                "`onesearch generations publish`"
            )
        state = self.aliases()
        problems = list(state.damaged)
        if state.champion is None:
            raise ConfigError(
                f"{self.path} has no champion; name one with `onesearch generations promote`"
            )
        named = state.named()
        candidates: tuple[Alias, ...] = ("champion", "previous")
        for alias in candidates:
            if (version := named.get(alias)) is None:
                continue
            damage = self.problems(version, hashes=verify, fit=False)
            if not damage:
                record = self.record(version)
                snapshot, checkpoint = self.paths(record)
                return Choice(record, snapshot, checkpoint, alias, state.revision, tuple(problems))
            problems.append(f"{alias} {version}: {damage[0]}")
        raise ArtifactError("no generation can be served: " + "; ".join(problems))

    # Pins

    def pin(self, version: str, why: str, ttl_s: float = LEASE_TTL_S) -> Lease:
        """Keep a generation from being removed until the lease is released or this process ends.

        Raises ArtifactError when the generation is not there.
        """
        with self.told(), locked(self._lock_path, self._lock_wait_s):
            self.record(version)
            return self.lease_files.take(version, why, ttl_s)

    def renew(self, lease: Lease, ttl_s: float = LEASE_TTL_S) -> Lease:
        """Keep a pin past its expiry, which matters to other machines. Raises ArtifactError when it
        was taken for dead and removed."""
        with self.told(), locked(self._lock_path, self._lock_wait_s):
            return self.lease_files.renew(lease, ttl_s)

    def release(self, lease: Lease) -> None:
        """End a pin. Ending it twice is no error."""
        self.lease_files.release(lease)

    @contextmanager
    def pinned(self, version: str, why: str) -> Generator[Lease, None, None]:
        """A pin for a block."""
        lease = self.pin(version, why)
        try:
            yield lease
        finally:
            self.release(lease)

    # Writing

    def make(self) -> None:
        """Make the folder, unless it is there.

        Raises ArtifactError when it is something else, or of another format.
        """
        if self.exists:
            self._check_format()
            return
        with self.told():
            if self.path.is_dir() and (there := sorted(one.name for one in self.path.iterdir())):
                strange = [name for name in there if not name.startswith(f".{_MARKER}")]
                # Another process may be making it now.
                if strange and not self.exists:
                    raise ArtifactError(
                        f"{self.path} is no registry, it holds {strange[0]}; name another folder"
                    )
            self.path.mkdir(parents=True, exist_ok=True)
            body = {"kind": "registry", "format_version": FORMAT_VERSION}
            write_durably(self.path / _MARKER, orjson.dumps(body))

    @contextmanager
    def writing(self) -> Generator[None, None, None]:
        """The lock, for a block that changes something. What a killed process did not log is
        logged first. Raises ArtifactError when others hold it for long, or the disk is full."""
        with self.told(), locked(self._lock_path, self._lock_wait_s):
            # A full disk tells of itself when the change is written; a rollback may still fit.
            with suppress(OSError):
                self.log.catch_up(self.alias_history)
            yield

    def note(self, what: str, by: Provenance, **facts: Any) -> None:
        """Add an event that changes nothing, such as what was measured."""
        with self.writing():
            self.log.append(what, who=by.named(), why=by.why, **facts)

    @contextmanager
    def told(self) -> Generator[None, None, None]:
        """A disk that fails is an error of this registry, in one line."""
        try:
            yield
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise ArtifactError(
                f"registry {self.path} cannot be written: {error.strerror or error}{where}"
            ) from error

    def _check_format(self) -> None:
        marker = self.path / _MARKER
        try:
            raw = cast(dict[str, Any], orjson.loads(marker.read_bytes()))
            found = (raw["kind"], raw["format_version"])
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise ArtifactError(f"{marker} cannot be read: {error}") from None
        if found != ("registry", FORMAT_VERSION):
            raise ArtifactError(f"{marker} says {found}; this program reads version 1")


def check_fit(snapshot: Path, checkpoint: Path, *, pairing: Pairing | None = None) -> Fitting:
    """Open both parts. Raises ArtifactError when they do not fit or are not what `pairing` says."""
    # Opening a checkpoint needs torch; lists and aliases do not wait for it.
    from models.registry.pairing import check_pair

    fitting = check_pair(snapshot, checkpoint)
    if pairing is not None and fitting.pairing != pairing:
        raise ArtifactError(
            f"{snapshot} and {checkpoint} say {fitting.pairing}, the generation was published as "
            f"{pairing}; a manifest is damaged"
        )
    return fitting
