"""The error tree. Every message says what was wrong, where, and what would be right.

OnesearchError
├── DataError       a row, field or file of somebody's data
├── ArtifactError   a dataset, snapshot or checkpoint directory: missing, damaged, incompatible
└── ConfigError     a setting or argument
"""

from __future__ import annotations

from pathlib import Path


class OnesearchError(Exception):
    """Base of all errors that a user can mend. `str(error)` is one line for a person."""


class DataError(OnesearchError):
    """Bad data. `path`, `row` (1-based line or row) and `field` name the place where known."""

    def __init__(
        self,
        message: str,
        *,
        path: Path | str | None = None,
        row: int | None = None,
        field: str | None = None,
    ) -> None:
        place = ", ".join(
            part
            for part in (
                str(path) if path is not None else "",
                f"row {row}" if row is not None else "",
                f"field {field!r}" if field is not None else "",
            )
            if part
        )
        super().__init__(f"{place}: {message}" if place else message)
        self.path = path
        self.row = row
        self.field = field


class ArtifactError(OnesearchError):
    """A directory that others read is missing, damaged or does not fit."""


class ConfigError(OnesearchError):
    """A setting or an argument that cannot work."""
