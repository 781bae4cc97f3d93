"""How a worker works, and what became of the jobs that it took."""

from __future__ import annotations

from dataclasses import dataclass

from server.keywords.queue import LEASE_S

DEFAULT_CONCURRENCY = 2
DEFAULT_BATCH = 32
ATTEMPTS = 4
RETRY_S = 2.0
DRAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How a worker works. `until_empty`: it ends when no job is left."""

    concurrency: int = DEFAULT_CONCURRENCY
    batch: int = DEFAULT_BATCH
    attempts: int = ATTEMPTS
    retry_s: float = RETRY_S
    lease_s: float = LEASE_S
    drain_s: float = DRAIN_S
    until_empty: bool = False


@dataclass(slots=True)
class Tally:
    """What became of the jobs that this worker took."""

    made: int = 0
    nothing: int = 0
    retried: int = 0
    dead: int = 0
    repeated: int = 0

    @property
    def done(self) -> int:
        return self.made + self.nothing
