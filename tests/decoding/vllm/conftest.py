"""One real vLLM for a whole session of tests: a tiny decoder, three levels of sixteen codes."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from decoding.native.runner import Runner
from decoding.reference import Oracle
from decoding.weights import CONFIG_FILE, SETTINGS_FILE, WEIGHTS_FILE, DecoderWeights
from index import artifact
from index.sid import SidLayout
from index.trie import Trie
from models.transformer import Qwen3, Qwen3Config

LAYOUT = SidLayout((16, 16, 16))
SID_OFFSET = (40, 56, 72)
VOCABULARY = 88
END_TOKEN = 1
MAX_PROMPT_TOKENS = 96
STOCK_TESTS = "test_stock_server.py"
EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"

for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}.items():
    os.environ.setdefault(_name, _value)

if importlib.util.find_spec("vllm") is not None:
    with warnings.catch_warnings():
        # Of vLLM's own modules as they load; tests fail for warnings.
        warnings.simplefilter("ignore")
        import decoding.vllm.engine  # noqa: F401


class StockServer(NamedTuple):
    """vLLM's own server, which need not answer yet."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


class TinyModel(NamedTuple):
    """A checkpoint directory and the same weights for the native engine and the oracles."""

    checkpoint: Path
    runner: Runner
    oracle: Oracle


def write_tiny_checkpoint(path: Path, seed: int = 0, *, tied: bool = False, head: float = 1.0):
    """A checkpoint with a manifest; `head` scales its output matrix, 0 makes all codes equal."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=MAX_PROMPT_TOKENS + LAYOUT.levels,
        tie_word_embeddings=tied,
    )
    generator = torch.Generator().manual_seed(seed)
    model = Qwen3(config).initialise(generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Far from the initial state, so that context and parents matter to the scores.
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        if not tied:
            model.lm_head.weight.mul_(head)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if tied:
        tensors.pop("lm_head.weight", None)
    settings = {"level_sizes": list(LAYOUT.level_sizes), "sid_offset": list(SID_OFFSET)}
    with artifact.create(path, "checkpoint") as draft:
        save_file(tensors, draft.path / WEIGHTS_FILE, metadata={"format": "pt"})
        raw = {**config.to_json(), "eos_token_id": END_TOKEN}
        (draft.path / CONFIG_FILE).write_text(json.dumps(raw), encoding="utf-8")
        (draft.path / SETTINGS_FILE).write_text(json.dumps(settings), encoding="utf-8")
    return model


@pytest.fixture(scope="session")
def tiny_trie() -> Trie:
    """300 drawn SIDs, and some with prefixes that have one child only, or all."""
    codes = np.random.default_rng(0).integers(0, 16, (300, 3))
    special = [[7, 7, code] for code in range(16)] + [[3, 0, 0]]
    codes = np.concatenate([codes[codes[:, 0] != 3], special])
    return Trie.build(LAYOUT, LAYOUT.pack(codes))


@pytest.fixture(scope="session")
def tiny_snapshot(tmp_path_factory: pytest.TempPathFactory, tiny_trie: Trie) -> Path:
    """A directory with the trie in it, as a snapshot has."""
    path = tmp_path_factory.mktemp("snapshot")
    (path / "trie").mkdir()
    tiny_trie.save(path / "trie")
    return path


@pytest.fixture(scope="session")
def write_tiny() -> Callable[..., Qwen3]:
    return write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_trie: Trie) -> TinyModel:
    path = tmp_path_factory.mktemp("model") / "checkpoint"
    model = write_tiny_checkpoint(path)
    weights = DecoderWeights.from_directory(path)
    oracle = Oracle(model.hidden, weights.level_output, SID_OFFSET)
    return TinyModel(path, Runner(weights, tiny_trie), oracle)


@pytest.fixture(scope="session")
def vllm_engine(tiny_model: TinyModel, tiny_trie: Trie, tiny_snapshot: Path) -> Iterator[object]:
    from decoding.vllm.engine import VllmEngine
    from decoding.vllm.settings import VllmSettings

    settings = VllmSettings(max_rows=512, max_batched_tokens=4096, kv_cache_gb=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = asyncio.run(
            VllmEngine.open(tiny_model.checkpoint, tiny_trie, settings, snapshot=tiny_snapshot)
        )
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="session", autouse=True)
def stock_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StockServer | None]:
    """vLLM's own server as docs/vllm.md starts it, where it is tested. It takes a quarter minute to
    start, so it does while other things are tested."""
    tested = any(item.path.name == STOCK_TESTS for item in request.session.items)
    if not tested or importlib.util.find_spec("vllm") is None:
        yield None
        return
    pair = request.getfixturevalue("tiny_pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "ONESEARCH_SNAPSHOT": str(pair.snapshot),
        "ONESEARCH_CHECKPOINT": str(pair.checkpoint),
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    log = tmp_path_factory.mktemp("stock") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", pair.checkpoint, "--served-model-name", "onesearch"),
                *("--logits-processors", "decoding.vllm.processor:SidProcessor"),
                *("--logprobs-mode", "processed_logits", "--dtype", "float32"),
                *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager"),
                *("--max-model-len", "128", "--block-size", "32"),
                # One process for the worker and its engine: starts in half the time.
                *("--distributed-executor-backend", EXECUTOR),
            ],
            stdout=output,
            stderr=output,
            env=os.environ | environment,
            start_new_session=True,
        )
    yield StockServer(f"http://127.0.0.1:{port}", process, log)
    # The worker is a process of its own, of the same session.
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
