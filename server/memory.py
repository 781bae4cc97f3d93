"""Whether there is memory for another generation, asked before it is loaded.

The need is an estimate: the sizes of the files that would be opened times NEED_FACTOR. Weights are
held once as read and once in the form that they are computed in; a snapshot's arrays are mapped,
and count as if all of them were touched. What is available is the least of what the machine, the
control group and, for weights on it, the GPU say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from index.errors import OnesearchError

NEED_FACTOR = 2.0
RESERVE_BYTES = 128 << 20
"""Left to searches and to everything else."""
_CONTROL_GROUP = Path("/sys/fs/cgroup")


class NotEnoughMemory(OnesearchError):
    """Two generations do not fit; the one that is served serves on."""


def check_memory(directories: Sequence[Path], device: str = "cpu") -> None:
    """Raises NotEnoughMemory when the directories' contents will not fit beside what is loaded."""
    need = needed_bytes(directories)
    available = available_bytes(device)
    if need + RESERVE_BYTES > available:
        raise NotEnoughMemory(
            f"loading {', '.join(one.name for one in directories)} takes about "
            f"{_megabytes(need)} and {_megabytes(RESERVE_BYTES)} are kept free, "
            f"{_megabytes(available)} are available; free memory, or start the server again with "
            "the new generation"
        )


def needed_bytes(directories: Sequence[Path]) -> int:
    """What opening them may take."""
    files = (file for one in directories for file in one.rglob("*") if file.is_file())
    return int(NEED_FACTOR * sum(file.stat().st_size for file in files))


def available_bytes(device: str = "cpu") -> int:
    """What this process may still take."""
    found = [psutil.virtual_memory().available, *_left_in_control_group()]
    if device != "cpu" and torch.cuda.is_available():
        found.append(torch.cuda.mem_get_info()[0])
    return min(found)


def _left_in_control_group() -> list[int]:
    """Bytes until the control group's limit, where it has one."""
    try:
        limit = (_CONTROL_GROUP / "memory.max").read_text().strip()
        used = int((_CONTROL_GROUP / "memory.current").read_text())
        cached = _inactive_files()
    except (OSError, ValueError):
        return []
    return [int(limit) - used + cached] if limit.isdigit() else []


def _inactive_files() -> int:
    """Cached file contents, which give way when memory is asked for."""
    for line in (_CONTROL_GROUP / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
