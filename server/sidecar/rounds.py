"""Rounds on disk: what was collected, how far it is, what became of it.

    STATE/lock
    STATE/rounds/000007/round.json           this record, replaced with one rename
                        exposures, context, events .parquet       the batch as it was collected
                        rows.parquet         joined rows that are trained on, once accepted
                        splits.parquet       query → side, of everything known by then
                        dataset/  sft/ …     while the round is open
                        comparison.json      figures of champion and challenger
                        again                a person wants a refused batch tried once more

One round is open at a time, the last one. A step is done when the record says so; a step that was
cut off is done again from the start, except training, which goes on from its own state.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import orjson

from index import artifact
from index.errors import ArtifactError, ConfigError
from server.events.records import START, Entry

Step = Literal["check", "build", "train", "compare", "publish"]
Outcome = Literal["open", "published", "refused", "failed", "superseded"]
STEPS: tuple[Step, ...] = ("check", "build", "train", "compare", "publish")
RECORD = "round.json"
AGAIN = "again"


class Cursor(NamedTuple):
    """Where reading goes on, in both logs."""

    exposures: Entry = START
    events: Entry = START


@dataclass(frozen=True, slots=True)
class Round:
    """`step`: the next to do. `since`, `until`: the batch's bounds. `champion`: the generation that
    it is measured against; `generation`: what was published. `reasons`: of a refusal or failure, a
    line each. `attempts`: of this step. `replays`: the refused round whose batch this is, 0 for
    none. `facts`: what each step found."""

    number: int
    since: Cursor
    until: Cursor
    created: float
    updated: float
    step: Step = "check"
    outcome: Outcome = "open"
    attempts: int = 0
    champion: str = ""
    generation: str = ""
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    replays: int = 0
    facts: dict[str, Any] = field(default_factory=dict[str, Any])

    def at(self, step: Step, **facts: Any) -> Round:
        """The round with this step next."""
        return replace(self, step=step, attempts=0, facts={**self.facts, **facts})

    def ended(self, outcome: Outcome, reasons: tuple[str, ...] = (), **facts: Any) -> Round:
        return replace(self, outcome=outcome, reasons=reasons, facts={**self.facts, **facts})

    def to_json(self) -> dict[str, Any]:
        cursors = {
            name: {log: str(entry) for log, entry in getattr(self, name)._asdict().items()}
            for name in ("since", "until")
        }
        return asdict(self) | cursors

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Round:
        """Raises KeyError, TypeError, ValueError for what `to_json` never wrote."""
        for name in ("since", "until"):
            raw[name] = Cursor(**{log: Entry.of(text) for log, text in raw[name].items()})
        for name in ("reasons", "notes"):
            raw[name] = tuple(raw[name])
        return cls(**raw)


class Rounds:
    """The rounds of a state folder. One process writes, in `locked`; anyone may read."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._folder = state / "rounds"

    def path(self, number: int) -> Path:
        """The folder of a round."""
        return self._folder / f"{number:06d}"

    def all(self) -> list[Round]:
        """Every round, oldest first. Raises ArtifactError for one that cannot be read."""
        numbers = sorted(
            int(path.parent.name)
            for path in self._folder.glob(f"*/{RECORD}")
            if path.parent.name.isdigit()
        )
        return [self.read(number) for number in numbers]

    def read(self, number: int) -> Round:
        """One round. Raises ConfigError when there is none, ArtifactError."""
        path = self.path(number) / RECORD
        try:
            return Round.from_json(cast(dict[str, Any], orjson.loads(path.read_bytes())))
        except FileNotFoundError:
            raise ConfigError(f"there is no round {number} in {self._folder}") from None
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from None

    def write(self, one: Round) -> Round:
        """Replace a round's record; the round with the time of it."""
        one = replace(one, updated=time.time())
        path = self.path(one.number)
        try:
            path.mkdir(parents=True, exist_ok=True)
            artifact.write_file(path / RECORD, orjson.dumps(one.to_json()))
        except OSError as error:
            raise ArtifactError(f"{path / RECORD} cannot be written: {error.strerror}") from None
        return one

    def next_number(self) -> int:
        """Of a round that does not exist yet; a folder without a record is taken again."""
        return max((one.number for one in self.all()), default=0) + 1

    def cursor(self) -> Cursor:
        """Where the next round's batch begins: behind the last one that read the logs. A round that
        another champion overtook has used nothing up."""
        read = [one for one in self.all() if not one.replays and one.outcome != "superseded"]
        return read[-1].until if read else Cursor()

    def accepted(self) -> list[Round]:
        """The rounds whose behaviour is trained on, oldest first."""
        return [one for one in self.all() if one.outcome == "published"]

    def want_again(self, number: int) -> None:
        """Have a refused or failed batch tried once more. Raises ConfigError for any other round,
        ArtifactError."""
        one = self.read(number)
        if one.outcome not in ("refused", "failed"):
            raise ConfigError(f"round {number} is {one.outcome}; only what was refused is replayed")
        try:
            artifact.write_file(self.path(number) / AGAIN, b"")
        except OSError as error:
            raise ArtifactError(f"{self.path(number)} cannot be written: {error}") from None

    def wanted_again(self) -> int | None:
        """The first round that waits to be tried once more."""
        waiting = sorted(path.parent.name for path in self._folder.glob(f"*/{AGAIN}"))
        return int(waiting[0]) if waiting else None

    def begun_again(self, number: int) -> None:
        """It waits no longer. Doing it twice is no error."""
        (self.path(number) / AGAIN).unlink(missing_ok=True)

    def tidy(self, number: int) -> None:
        """Remove what an ended round needs no more: its dataset, weights and training state."""
        for path in self.path(number).iterdir():
            if path.is_dir() and not path.name.endswith(".log"):
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Hold the folder. Raises ConfigError when another process does."""
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{self.state} cannot be written: {error.strerror}") from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another sidecar works in {self.state}") from None
            yield
        finally:
            os.close(lock)
