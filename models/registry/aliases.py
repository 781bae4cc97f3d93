"""Aliases: which generation is champion, challenger, previous. One small file per state.

    aliases/00000012.json    {"body": {"revision": 12, "champion": …, …}, "sha256": …}

Files are written once and never again; the one with the largest number holds. So all three aliases
change in one rename, the history stays, and a reader needs no lock: one listing, one small file. A
damaged file is passed over for the one before it, and named.

A canary stands in the same file: it is of this champion and this challenger, and ends with either.
States without one are written as they were before there were canaries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import orjson

from index import artifact
from index.errors import ArtifactError
from models.registry.durable import sync

Alias = Literal["champion", "challenger", "previous"]
ALIASES: tuple[Alias, ...] = ("champion", "challenger", "previous")
KEPT_REVISIONS = 1_000
_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Canary:
    """The share of the units, above 0 and below 1, that the challenger answers; others are answered
    by the champion. `experiment` is its name, from which units are assigned."""

    experiment: str
    share: float


@dataclass(frozen=True, slots=True)
class Aliases:
    """One state, and the change that led to it. Revision 0 is the state before the first change.

    `when` is Unix time. `damaged` names files that were passed over to find this state; `unsynced`
    says why a change that holds may not outlive a power cut. Neither is stored.
    """

    revision: int = 0
    champion: str | None = None
    challenger: str | None = None
    previous: str | None = None
    canary: Canary | None = None
    what: str = ""
    who: str = ""
    why: str = ""
    when: float = 0.0
    damaged: tuple[str, ...] = ()
    unsynced: str = ""

    def named(self) -> dict[Alias, str]:
        """The aliases that are given, in the order of ALIASES."""
        found: dict[Alias, str] = {}
        for alias in ALIASES:
            generation = cast(str | None, getattr(self, alias))
            if generation is not None:
                found[alias] = generation
        return found

    def of(self, generation: str) -> list[Alias]:
        """The aliases of a generation."""
        return [alias for alias, named in self.named().items() if named == generation]


_BODY = frozenset(one.name for one in fields(Aliases)) - {"damaged", "unsynced"}


class AliasHistory:
    """The states in a directory. Writers hold the registry's lock."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def current(self) -> Aliases:
        """The newest state that can be read.

        Raises ArtifactError when there are states and none of them can be read.
        """
        damaged: list[str] = []
        for revision in reversed(self.revisions()):
            try:
                state = self.read(revision)
            except FileNotFoundError:
                continue
            except ArtifactError as error:
                damaged.append(str(error))
            else:
                return replace(state, damaged=tuple(damaged))
        if damaged:
            raise ArtifactError(f"no state of {self._directory} can be read: {damaged[0]}")
        return Aliases()

    def append(self, state: Aliases) -> Aliases:
        """Make a state the current one; returns it with its revision. An OSError means that it is
        not: what fails after every reader has it is told in `unsynced`."""
        newest = max(self.revisions(), default=0)
        state = replace(state, revision=newest + 1, damaged=(), unsynced="")
        body = {name: value for name, value in asdict(state).items() if name in _BODY}
        if state.canary is None:
            del body["canary"]
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(state.revision)
        artifact.write_file(path, orjson.dumps({"body": body, "sha256": _sum(body)}))
        try:
            sync(self._directory)
        except OSError as error:
            reason = error.strerror or str(error)
            return replace(state, unsynced=f"{self._directory} could not be synced: {reason}")
        return state

    def revisions(self) -> list[int]:
        """Numbers of the states that are kept, oldest first."""
        names = (path.stem for path in self._directory.glob("*.json"))
        return sorted(int(name) for name in names if name.isdigit())

    def read(self, revision: int) -> Aliases:
        """One state. Raises ArtifactError for a damaged file, FileNotFoundError for none."""
        path = self._path(revision)
        try:
            raw = orjson.loads(path.read_bytes())
            body = cast(dict[str, Any], raw["body"])
            if raw["sha256"] != _sum(body):
                raise ArtifactError(f"{path} differs from its own sha256; it is damaged")
            if (canary := body.get("canary")) is not None:
                body["canary"] = Canary(**canary)
            return Aliases(**body)
        except FileNotFoundError:
            raise
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ArtifactError(f"{path} cannot be read: {reason}") from None

    def history(self, after: int = 0) -> list[Aliases]:
        """The kept states behind a revision that can be read, oldest first."""
        states: list[Aliases] = []
        for revision in self.revisions():
            if revision > after:
                try:
                    states.append(self.read(revision))
                except (ArtifactError, FileNotFoundError):
                    continue
        return states

    def promotion_of(self, champion: str) -> Aliases | None:
        """The change that made the champion what it is, if it is this one and that is kept."""
        found: Aliases | None = None
        for revision in reversed(self.revisions()):
            try:
                state = self.read(revision)
            except (ArtifactError, FileNotFoundError):
                continue
            if state.champion != champion:
                return found
            found = state
        return None

    def damaged(self) -> list[str]:
        """What is wrong with which file."""
        found: list[str] = []
        for revision in self.revisions():
            try:
                self.read(revision)
            except FileNotFoundError:
                continue
            except ArtifactError as error:
                found.append(str(error))
        return found

    def trim(self, keep: int = KEPT_REVISIONS) -> int:
        """Remove the oldest states; the newest `keep` stay, and the current one always."""
        spare: Sequence[int] = self.revisions()[: -max(keep, 1)]
        current = self.current().revision
        spare = [revision for revision in spare if revision != current]
        for revision in spare:
            self._path(revision).unlink(missing_ok=True)
        return len(spare)

    def _path(self, revision: int) -> Path:
        return self._directory / f"{revision:0{_DIGITS}d}.json"


def _sum(body: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
