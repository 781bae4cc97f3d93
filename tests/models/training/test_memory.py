import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept():
    """In a process of its own: it lasts for the rest of it."""
    program = (
        "import resource, torch\n"
        "from models.training.memory import keep_freed_memory\n"
        "assert keep_freed_memory()\n"
        "def faults():\n"
        "    for _ in range(20):\n"
        "        torch.ones(16_000_000)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "first = faults()\n"
        "assert faults() - first < 20_000\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
