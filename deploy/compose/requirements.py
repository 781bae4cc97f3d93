"""The requirements that a pyproject.toml names, one a line: for an image layer without the source.

python requirements.py pyproject.toml [EXTRA …]
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(project: Path, extras: list[str]) -> list[str]:
    """Dependencies, then those of each extra. Raises KeyError for an extra that is not there."""
    table = tomllib.loads(project.read_text())["project"]
    optional = table["optional-dependencies"]
    return [*table["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])) + "\n")
