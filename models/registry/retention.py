"""What may go: generations that nobody names, pins or wants to keep, then parts that none uses.

Removal starts at the generation, so whatever is cut short leaves parts without a generation, which
the next run removes, and never a generation without its parts.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from index.errors import ArtifactError, ConfigError
from models.registry.aliases import Aliases
from models.registry.durable import clear_work, remove_durably
from models.registry.leases import Lease
from models.registry.record import GenerationRecord
from models.registry.registry import Provenance, Registry
from models.registry.store import changes_beside

KEPT_GENERATIONS = 5
MIN_AGE_S = 3600.0
"""A generation this young is kept: whoever published it is about to name it."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How much history stays: the newest `generations`, and all younger than `min_age_s`."""

    generations: int = KEPT_GENERATIONS
    min_age_s: float = MIN_AGE_S


@dataclass(frozen=True, slots=True)
class Sweep:
    """`kept`: generation → why it stays. `generations`, `snapshots`, `checkpoints`: what goes.
    `kept_snapshots`: unused snapshots that stay, and why."""

    kept: Mapping[str, tuple[str, ...]]
    generations: tuple[str, ...]
    snapshots: tuple[str, ...]
    checkpoints: tuple[str, ...]
    kept_snapshots: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Stored:
    """What lies in the stores, and which snapshots have changes beside them."""

    snapshots: Sequence[str]
    checkpoints: Sequence[str]
    changed: Collection[str]


def plan_sweep(
    records: Sequence[GenerationRecord],
    damaged: Sequence[str],
    stored: Stored,
    aliases: Aliases,
    leases: Iterable[Lease],
    retention: Retention,
    now: float,
) -> Sweep:
    """Decide. `damaged`: generations whose record cannot be read; what they use is not known, so
    while one of them is named or pinned, no part is removed."""
    reasons: dict[str, list[str]] = {one.version: [] for one in records}
    reasons |= {version: [] for version in damaged}
    for alias, version in aliases.named().items():
        reasons.setdefault(version, []).append(alias)
    for lease in leases:
        reasons.setdefault(lease.generation, []).append(
            f"pinned by process {lease.process}" + (f" ({lease.why})" if lease.why else "")
        )
    by_age = sorted(records, key=lambda one: (-one.created, one.version))
    for place, one in enumerate(by_age):
        if place < retention.generations:
            reasons[one.version].append(f"one of the newest {retention.generations}")
        if now - one.created < retention.min_age_s:
            reasons[one.version].append(f"younger than {retention.min_age_s / 60:g} minutes")
    kept = {version: tuple(why) for version, why in reasons.items() if why}
    known = {one.version: one.pairing for one in records}
    gone = tuple(version for version in (*known, *damaged) if version not in kept)
    if any(version not in known for version in kept):
        return Sweep(kept, gone, (), (), {})
    used = [known[version] for version in kept]
    spare = _unused(stored.snapshots, {pairing.snapshot for pairing in used})
    changed = {version: "has changes beside it" for version in spare if version in stored.changed}
    return Sweep(
        kept,
        gone,
        tuple(version for version in spare if version not in changed),
        tuple(_unused(stored.checkpoints, {pairing.checkpoint for pairing in used})),
        changed,
    )


def collect(
    registry: Registry,
    retention: Retention | None = None,
    *,
    dry_run: bool = False,
    by: Provenance | None = None,
) -> Sweep:
    """Remove what is neither named, pinned nor to be kept, and what killed processes left.

    Raises ArtifactError when the aliases cannot be read: nothing is removed then.
    """
    by = by or Provenance()
    if not registry.exists:
        raise ConfigError(f"there is no registry at {registry.path}")
    with registry.writing():
        if damaged := registry.aliases().damaged:
            raise ArtifactError(
                f"{damaged[0]}; it may name what would be removed, so nothing is: promote a "
                "generation first, which writes a new one"
            )
        sweep = _plan(registry, retention or Retention())
        if dry_run:
            return sweep
        for version in sweep.generations:
            remove_durably(registry.generations / version, registry.work)
            registry.log.append("remove", who=by.named(), why=by.why, generation=version)
        for store, versions in (
            (registry.snapshots, sweep.snapshots),
            (registry.checkpoints, sweep.checkpoints),
        ):
            for version in versions:
                store.remove(version)
                registry.log.append("remove", who=by.named(), why=by.why, **{store.kind: version})
        # All that writes here holds the lock that we hold: hidden names are leftovers.
        for leftover in registry.generations.glob(".*"):
            remove_durably(leftover, registry.work)
        for folder in ("aliases", "leases", "trials"):
            for leftover in (registry.path / folder).glob(".*"):
                leftover.unlink(missing_ok=True)
        clear_work(registry.work)
        registry.lease_files.clear()
        registry.alias_history.trim()
    return sweep


def _plan(registry: Registry, retention: Retention) -> Sweep:
    records, damaged = registry.records()
    snapshots = registry.snapshots.versions()
    stored = Stored(
        snapshots,
        registry.checkpoints.versions(),
        {one for one in snapshots if changes_beside(registry.snapshots.path(one))},
    )
    return plan_sweep(
        records,
        list(damaged),
        stored,
        registry.aliases(),
        registry.lease_files.holding(),
        retention,
        time.time(),
    )


def _unused(versions: Sequence[str], used: Collection[str]) -> list[str]:
    return [version for version in versions if version not in used]
