"""Directories of NumPy arrays, one `.npy` file each, opened by memory map. Never pickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import ArtifactError


def save_arrays(directory: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write each array to `directory/NAME.npy`. The directory is made when it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array, allow_pickle=False)


def open_array(path: Path) -> NDArray[Any]:
    """A read-only array backed by its file. Raises ArtifactError when it is missing or damaged."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing; build the index again") from None
    except (ValueError, EOFError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); build the index again") from None
    return mapped.view(np.ndarray)
