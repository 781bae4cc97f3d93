"""What is mixed into vLLM's workers, without vLLM."""

import signal
import subprocess
import sys
import time
from pathlib import Path

STARTING_S, GONE_S = 60, 20
# A process that starts another, as vLLM does, and is killed.
KILLED = """
import multiprocessing, os, signal, sys, time
from decoding.vllm.worker_extension import ReplaceableWeights

def work(ready):
    ReplaceableWeights().end_with_parent()
    ready.set()
    time.sleep(600)

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    child = spawn.Process(target=work, args=(ready,))
    child.start()
    ready.wait()
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_ends_with_the_process_that_started_it_however_that_ends(tmp_path: Path):
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, tmp_path / "killed.py"]
    with (tmp_path / "log").open("wb") as log:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=log, timeout=STARTING_S, check=False
        )
    assert ended.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    number, until = int(ended.stdout), time.monotonic() + GONE_S
    while runs(number):
        assert time.monotonic() < until
        time.sleep(0.02)


def runs(number: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
