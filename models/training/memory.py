"""Keep freed memory in the process: a training step frees and takes the same buffers again.

glibc hands large buffers back to the system and takes them anew, page by page; on a CPU that costs
about a tenth of a step. Elsewhere (other C libraries) nothing is changed.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """For the rest of this process; whether the C library could be told."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
