"""Leases: what processes serve or look at, so that nobody removes it under them.

    leases/GENERATION.RANDOM.json    {"generation", "machine", "process", "expires", "why", …}

A lease ends when its holder releases it. If the holder was killed, it ends at once on the holder's
own machine, where one can see that the process is gone; on others when it expires. So a holder on a
shared disk renews its lease well before `ttl_s` is over; on one machine it need not.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import orjson

from index.errors import ArtifactError
from models.registry.durable import write_durably
from models.registry.process import Process

LEASE_TTL_S = 120.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A pin of one generation. `expires` is Unix time: it is read by other machines."""

    generation: str
    name: str
    machine: str
    process: int
    started: float
    expires: float
    why: str = ""

    def holds(self, now: float) -> bool:
        """Whether the pin still counts."""
        runs = Process(self.machine, self.process, self.started).runs_here()
        return now < self.expires if runs is None else runs


class Leases:
    """The lease files of a registry."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def take(self, generation: str, why: str, ttl_s: float = LEASE_TTL_S) -> Lease:
        """Pin a generation for this process."""
        own = Process.own()
        name = f"{generation}.{secrets.token_hex(6)}"
        expires = time.time() + ttl_s
        lease = Lease(generation, name, own.machine, own.number, own.started, expires, why)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._write(lease)
        return lease

    def renew(self, lease: Lease, ttl_s: float = LEASE_TTL_S) -> Lease:
        """The same, good for another `ttl_s` from now.

        Raises ArtifactError when the lease was found expired and removed: take a new one.
        """
        if not self._path(lease).exists():
            raise ArtifactError(f"lease {lease.name} has expired and was removed; pin again")
        lease = replace(lease, expires=time.time() + ttl_s)
        self._write(lease)
        return lease

    def release(self, lease: Lease) -> None:
        """End a pin. Ending it twice is no error."""
        self._path(lease).unlink(missing_ok=True)

    def holding(self) -> list[Lease]:
        """The pins that count, by name."""
        now = time.time()
        return [lease for lease in self._all() if lease.holds(now)]

    def clear(self) -> int:
        """Remove the files of leases that have ended; how many."""
        now = time.time()
        ended = [lease for lease in self._all() if not lease.holds(now)]
        for lease in ended:
            self.release(lease)
        return len(ended)

    def _all(self) -> list[Lease]:
        found: list[Lease] = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                raw = cast(dict[str, Any], orjson.loads(path.read_bytes()))
                found.append(Lease(**raw))
            except FileNotFoundError:
                continue
            except (OSError, orjson.JSONDecodeError, TypeError):
                found.append(_unreadable(path))
        return found

    def _write(self, lease: Lease) -> None:
        write_durably(self._path(lease), orjson.dumps(asdict(lease)))

    def _path(self, lease: Lease) -> Path:
        return self._directory / f"{lease.name}.json"


def _unreadable(path: Path) -> Lease:
    """A damaged lease still pins what its name says, for as long as a fresh one would."""
    try:
        expires = path.stat().st_mtime + LEASE_TTL_S
    except FileNotFoundError:
        expires = 0.0
    generation = path.name.split(".", 1)[0]
    return Lease(generation, path.stem, "", 0, 0.0, expires, "unreadable lease")
