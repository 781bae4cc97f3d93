"""Peer: vLLM's CPU build with a driver for SID beams, in its own environment (`make vllm-env`).

A process of that environment loads the checkpoint and answers searches (vllm_driver.py). Processes
start while others do: ask `wait` before the first search.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import OnesearchError
from index.trie import Trie
from loadtest.bench.report import Timed

NAME = "vLLM (CPU), own driver"
ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(ROOT),
}
_LAST_WORDS = 400
_SPIN_S = 0.3
"""Threads of its OpenMP look for more work for 0.2 s; others are not to be timed meanwhile."""


class VllmFailed(OnesearchError):
    """The process ended instead of answering."""


def why_missing() -> str | None:
    """Why it cannot run here, None when it can."""
    return None if PYTHON.exists() else "not installed: make vllm-env"


class Vllm:
    """A running process; use as a context. Raises VllmFailed when it does not start or ends."""

    def __init__(
        self, checkpoint: Path, trie: Trie, dtype: str, widest: int, threads: int = 1
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        trie_path = Path(self._folder.name) / "trie"
        trie_path.mkdir()
        trie.save(trie_path)
        self._errors = (Path(self._folder.name) / "errors").open("w+")
        driver = [str(PYTHON), "-m", "loadtest.bench.vllm_driver"]
        self._process = subprocess.Popen(
            [*driver, str(checkpoint), str(trie_path), dtype, str(widest)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **_ENVIRONMENT, "OMP_NUM_THREADS": str(threads)},
        )
        self._threads = threads

    def __enter__(self) -> Vllm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def wait(self) -> None:
        """Until it is ready, once."""
        self._read()

    def search(self, prompts: NDArray[np.int64], width: int) -> Timed:
        """Prompts (Q, T) → codes int64 (Q, width, L), best first, and the search's own seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts.tolist(), "beam": width}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if self._threads > 1:
            time.sleep(_SPIN_S)
        codes = [np.array(beam, dtype=np.int64) for beam in answer["codes"]]
        return Timed(codes, answer["seconds"])

    def close(self) -> None:
        """End the process and remove its files."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        self._folder.cleanup()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            words = " ".join(self._errors.read().split())
            raise VllmFailed(f"vLLM ended: …{words[-_LAST_WORDS:]}")
        return json.loads(line)
