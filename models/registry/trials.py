"""What the generation before a champion did, for who judges the champion by it after a restart.

    trials/00000012.json     of the change of aliases with that number

Whoever promotes writes it once; the body is its own business. A file that is missing or damaged
costs the judgement, nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import orjson

from index.errors import ArtifactError
from models.registry.durable import write_durably

KEPT_TRIALS = 20


class Trials:
    """The files in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, revision: int, body: dict[str, Any]) -> None:
        """Write one, unless another server has; the newest KEPT_TRIALS stay. Raises ArtifactError
        where the disk does not take it."""
        path = self._path(revision)
        if path.exists():
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_durably(path, orjson.dumps(body))
            for old in sorted(self._directory.glob("*.json"))[:-KEPT_TRIALS]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be written: {error.strerror or error}") from None

    def read(self, revision: int) -> dict[str, Any] | None:
        """What was kept; None for nothing that can be read."""
        try:
            body = orjson.loads(self._path(revision).read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return None
        return cast(dict[str, Any], body) if isinstance(body, dict) else None

    def _path(self, revision: int) -> Path:
        return self._directory / f"{revision:08d}.json"
