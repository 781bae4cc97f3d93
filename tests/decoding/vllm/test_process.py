"""vLLM's process, ended from outside."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decoding.engine import Prompt
from decoding.errors import EngineRestarting
from decoding.native.runner import Runner, Search
from decoding.vllm.swap import SwapFailed
from decoding.weights import DecoderWeights
from index.errors import OnesearchError
from index.trie import Trie

pytest.importorskip("vllm", reason="vLLM lives in an environment of its own: make test-vllm")

from decoding.vllm.engine import VllmEngine, VllmGeneration

pytestmark = [
    pytest.mark.anyio,
    # vLLM and what it imports warn of themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
WIDTH = 12
AGAIN_S = 120
PROMPT = Prompt(np.arange(2, 40, dtype=np.int32))


async def test_vllm_that_ended_is_started_again_with_the_live_weights(
    vllm_engine: VllmEngine, tiny_trie: Trie, write_tiny: Any, tmp_path: Path
):
    before = vllm_engine.live
    write_tiny(tmp_path / "other", 1)
    other = VllmGeneration(tmp_path / "other", tiny_trie)
    await vllm_engine.swap(other)
    running = [asyncio.create_task(vllm_engine.search([PROMPT], 128)) for _ in range(16)]
    swapping = asyncio.create_task(vllm_engine.swap(before))
    await asyncio.sleep(0.03)
    for number in vllm_engine.process_ids:
        os.kill(number, signal.SIGKILL)
    await until(lambda: vllm_engine.stats().restarting)
    with pytest.raises(EngineRestarting):
        await vllm_engine.search([PROMPT], WIDTH)
    # Those that had not begun are answered afterwards.
    outcomes = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), AGAIN_S)
    assert all(isinstance(one, list | OnesearchError) for one in outcomes)
    assert any(isinstance(one, OnesearchError) for one in outcomes)
    live = before
    try:
        await asyncio.wait_for(swapping, AGAIN_S)
    except SwapFailed:
        live = other
    await until(lambda: not vllm_engine.stats().restarting)
    [found] = await vllm_engine.search([PROMPT], WIDTH, generation=live)
    runner = Runner(DecoderWeights.from_directory(live.checkpoint), tiny_trie)
    [expected] = runner.run([Search(PROMPT, WIDTH)])
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert vllm_engine.stats().restarts == 1 and vllm_engine.unanswered == 0
    await vllm_engine.swap(before)


async def until(true: Callable[[], bool]) -> None:
    latest = time.monotonic() + AGAIN_S
    while not true():
        assert time.monotonic() < latest
        await asyncio.sleep(0.02)
