"""A registered generation: which snapshot and which checkpoint, and where they come from.

    generations/VERSION/generation.json    what the version digests: the pair and what it fixes
    generations/VERSION/manifest.json      kind "generation": parents, metrics, who, why

The same pair has the same version wherever it is registered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson

from index import artifact
from index.errors import ArtifactError
from models.registry.store import check_artifact, version_of

KIND = "generation"
_BODY = "generation.json"


@dataclass(frozen=True, slots=True)
class Pairing:
    """What a snapshot and a checkpoint say of themselves once they were found to fit."""

    snapshot: str
    checkpoint: str
    codec_id: str
    level_sizes: tuple[int, ...]
    dataset_version: str
    simulated: bool

    @property
    def version(self) -> str:
        """The version of the generation that they make."""
        return version_of({_BODY: {"sha256": hashlib.sha256(self.to_bytes()).hexdigest()}})

    def to_bytes(self) -> bytes:
        body = {
            "snapshot": self.snapshot,
            "checkpoint": self.checkpoint,
            "codec_id": self.codec_id,
            "level_sizes": list(self.level_sizes),
            "dataset_version": self.dataset_version,
            "simulated": self.simulated,
        }
        return orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)

    @classmethod
    def from_bytes(cls, data: bytes) -> Pairing:
        """Raises KeyError, TypeError, ValueError for what `to_bytes` never wrote."""
        raw = cast(dict[str, Any], orjson.loads(data))
        raw["level_sizes"] = tuple(int(size) for size in raw["level_sizes"])
        return cls(**raw)


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """`version`: the generation's. `created`: Unix time. `parents`: generations that it replaces
    or was made from; `lineage`: versions of data and checkpoints behind its parts; `metrics`: what
    was measured when it was published; `who`, `why`: of its publication."""

    version: str
    pairing: Pairing
    created: float
    parents: tuple[str, ...] = ()
    lineage: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    who: str = ""
    why: str = ""

    @property
    def catalogue_origin(self) -> str:
        """Version of the snapshot whose changed catalogue the snapshot holds; its own for one that
        was built. Snapshots of one origin share encoder, codec and the changes that go on."""
        return str(self._catalogue.get("origin", self.pairing.snapshot))

    @property
    def catalogue_sequence(self) -> int:
        """Number of the last change of that catalogue which the snapshot holds; 0 for none."""
        return int(self._catalogue.get("sequence", 0))

    @property
    def _catalogue(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], self.lineage.get("catalogue") or {})

    def to_json(self) -> dict[str, Any]:
        pairing = self.pairing
        return {
            "version": self.version,
            "snapshot": pairing.snapshot,
            "checkpoint": pairing.checkpoint,
            "codec_id": pairing.codec_id,
            "level_sizes": list(pairing.level_sizes),
            "dataset_version": pairing.dataset_version,
            "simulated": pairing.simulated,
            "created": self.created,
            "parents": list(self.parents),
            "lineage": dict(self.lineage),
            "metrics": dict(self.metrics),
            "who": self.who,
            "why": self.why,
        }


def write_record(directory: Path, record: GenerationRecord) -> GenerationRecord:
    """Register a generation in `directory`; an equal one that is there already stays and is given
    back. Under the registry's lock."""
    path = directory / record.version
    if path.exists():
        return read_record(path)
    with artifact.create(path, KIND) as draft:
        (draft.path / _BODY).write_bytes(record.pairing.to_bytes())
        draft.manifest.update(
            created=record.created,
            parents=list(record.parents),
            lineage=dict(record.lineage),
            metrics=dict(record.metrics),
            who=record.who,
            why=record.why,
        )
    return read_record(path)


def read_record(path: Path) -> GenerationRecord:
    """A registered generation. Raises ArtifactError naming the file and what is wrong with it."""
    manifest = check_artifact(path, KIND, hashes=True)
    extra = manifest.extra
    try:
        pairing = Pairing.from_bytes((path / _BODY).read_bytes())
        record = GenerationRecord(
            manifest.version,
            pairing,
            manifest.created,
            tuple(str(parent) for parent in extra.get("parents", ())),
            dict(extra.get("lineage", {})),
            dict(extra.get("metrics", {})),
            str(extra.get("who", "")),
            str(extra.get("why", "")),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path / _BODY} cannot be read: {error}") from None
    if record.version != path.name:
        raise ArtifactError(f"{path} holds generation {record.version}; it was renamed or damaged")
    return record
